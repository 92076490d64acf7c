import { readFileSync } from 'node:fs';
import { dirname, join, normalize, relative, sep } from 'node:path';

/** One import that breaks a rule, ready to print. */
export type Violation = { file: string; sentence: string };

/** Which packages of ours a package may import. */
const MAY_IMPORT: Readonly<Record<string, readonly string[]>> = {
  shared: [],
  transfer: ['shared'],
  'request-network': ['shared', 'transfer'],
  'response-network': ['shared', 'transfer'],
  scripts: ['shared', 'transfer', 'request-network', 'response-network'],
};

/** What may be named only in some files: [what, how it is recognised, where it may stand]. */
const ONLY_IN: readonly (readonly [what: string, found: RegExp, where: RegExp])[] = [
  [
    'process.env',
    /\bprocess\.env\b/,
    /^scripts\/|\/src\/(?:[a-z-]+\/)?(?:[a-z-]+-)?config\.ts$|\/src\/testing\.ts$|\.test\.ts$/,
  ],
  [
    'express',
    /from 'express'/,
    /^scripts\/|\.routes\.ts$|\/app\.ts$|^shared\/src\/http[a-z-]*\.ts$|\.test\.ts$/,
  ],
  [
    '@elastic/elasticsearch',
    /from '@elastic\/elasticsearch'/,
    /^scripts\/|^response-network\/src\/elastic\//,
  ],
  ['bullmq and ioredis', /from '(?:bullmq|ioredis)'/, /^shared\/src\/|\.test\.ts$/],
];

/** What is written a second time, to find the mistakes of the first, and so knows none of it. */
const APART = 'transfer/src/second-validator/';

/** Files that translate and start things: they call nouns and contain no SQL. */
const WITHOUT_SQL = /\.routes\.ts$|\/(?:main|cli|app|worker|network)\.ts$|\/commands\//;
const SQL_CALL = /\b(?:rows|runPrepared)\s*[<(]|\.raw\(/;

const IMPORT =
  /^(import|export)\s+(type\s+)?(?:[^'";]*?\sfrom\s+)?'([^']+)'|\bimport\('([^']+)'\)/gm;

/**
 * Checks the rules of docs/decisions/0009-import-rules.md: who may import whom, only through a
 * package's index, what may be named where, and no cycles. `files` are paths below `root` with
 * forward slashes.
 */
export function checkImports(
  files: readonly string[],
  read: (file: string) => string,
): Violation[] {
  const graph = new Map<string, string[]>();
  const violations = files.flatMap((file) => {
    const source = withoutComments(read(file));
    const found = [...source.matchAll(IMPORT)].map((match) => ({
      target: match[3] ?? match[4] ?? '',
      type: Boolean(match[2]),
    }));
    graph.set(
      file,
      found
        .filter(({ target, type }) => target.startsWith('.') && !type)
        .map(({ target }) => resolveImport(file, target)),
    );
    return [
      ...found.flatMap(({ target }) => checkImport(file, target)),
      ...checkMentions(file, source),
    ];
  });
  return [...violations, ...findCycles(graph)];
}

/** Reads the files from disk; see {@link checkImports}. */
export function checkImportsIn(root: string, files: readonly string[]): Violation[] {
  return checkImports(files, (file) => readFileSync(join(root, file), 'utf8'));
}

function checkImport(file: string, target: string): Violation[] {
  const home = file.split('/')[0] ?? '';
  const resolved = target.startsWith('.') ? resolveImport(file, target) : target;
  const isApart = file.startsWith(APART) && !file.endsWith('.test.ts');
  if (isApart && !resolved.startsWith(APART) && !target.startsWith('node:')) {
    return [{ file, sentence: `imports ${target}; it stands apart, with Node.js alone` }];
  }
  if (target.startsWith('.')) {
    if (resolved.split('/')[0] === home) return [];
    return [{ file, sentence: `imports ${target}, which leaves its package` }];
  }
  const [, name, inside] = /^@sallyport\/([^/]+)(?:\/(.+))?$/.exec(target) ?? [];
  if (name === undefined) return [];
  if (!MAY_IMPORT[home]?.includes(name)) {
    return [{ file, sentence: `imports @sallyport/${name}, which ${home} may not know` }];
  }
  const inTests = /(?:\.test|\/testing)\.ts$/.test(file) || home === 'scripts';
  if (inside === undefined || (inside === 'testing' && inTests)) return [];
  return [{ file, sentence: `imports ${target} past the index of its package` }];
}

function checkMentions(file: string, source: string): Violation[] {
  const misplaced = ONLY_IN.filter(([, found, where]) => found.test(source) && !where.test(file));
  const violations = misplaced.map(([what]) => ({
    file,
    sentence: `names ${what}, which has its place`,
  }));
  if (WITHOUT_SQL.test(file) && SQL_CALL.test(source)) {
    violations.push({ file, sentence: 'talks to the database, which belongs in a noun file' });
  }
  return violations;
}

function findCycles(graph: ReadonlyMap<string, readonly string[]>): Violation[] {
  const done = new Set<string>();
  const violations: Violation[] = [];
  const visit = (file: string, path: readonly string[]): void => {
    const start = path.indexOf(file);
    if (start !== -1) {
      const cycle = [...path.slice(start), file].join(' -> ');
      violations.push({ file, sentence: `stands in a cycle: ${cycle}` });
      return;
    }
    if (done.has(file)) return;
    for (const next of graph.get(file) ?? []) visit(next, [...path, file]);
    done.add(file);
  };
  for (const file of graph.keys()) visit(file, []);
  return violations;
}

function resolveImport(file: string, target: string): string {
  const path = normalize(join(dirname(file), target))
    .split(sep)
    .join('/');
  return relative('.', path).replace(/\.js$/, '.ts').split(sep).join('/');
}

function withoutComments(source: string): string {
  return source.replace(/\/\*[\s\S]*?\*\//g, '').replace(/^\s*\/\/.*$/gm, '');
}
