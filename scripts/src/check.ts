import { execFileSync, spawnSync } from 'node:child_process';
import { resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { checkImportsIn } from './import-rules.js';

/** The one gate command: format, lint, import rules and cycles; types were checked by the build. */
const root = resolve(fileURLToPath(import.meta.url), '../../..');

const gates: readonly (readonly [name: string, run: () => boolean])[] = [
  ['format', () => runTool('prettier/bin/prettier.cjs', ['--check', '--log-level', 'warn', '.'])],
  ['lint', () => runTool('oxlint/bin/oxlint', ['--type-aware', '--deny-warnings'])],
  ['imports', checkImportRules],
];

const failed = gates.filter(([name, run]) => {
  const started = Date.now();
  const passed = run();
  const seconds = ((Date.now() - started) / 1000).toFixed(1);
  console.error(`sallyport: ${name} ${passed ? 'ok' : 'FAILED'} (${seconds} s)`);
  return !passed;
});
process.exitCode = failed.length === 0 ? 0 : 1;

function runTool(script: string, args: string[]): boolean {
  const path = resolve(root, 'node_modules', script);
  const { status } = spawnSync(process.execPath, [path, ...args], { cwd: root, stdio: 'inherit' });
  return status === 0;
}

function checkImportRules(): boolean {
  // Tracked and new files alike, so that a rule is not broken until it is committed.
  const listed = execFileSync(
    'git',
    ['ls-files', '--cached', '--others', '--exclude-standard', '*/src/*.ts'],
    { cwd: root, encoding: 'utf8' },
  );
  const violations = checkImportsIn(root, listed.split('\n').filter(Boolean));
  for (const { file, sentence } of violations) console.error(`${file} ${sentence}`);
  return violations.length === 0;
}
