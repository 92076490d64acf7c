import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { SallyportError } from '@sallyport/shared';
import { isRoot, type ServiceUser } from './place.js';

const FLOOR = 17;
const COMMANDS: [tool: string, command: string][] = [
  ['brew', 'brew install openjdk@21 maven'],
  ['apt-get', 'sudo apt-get install -y openjdk-17-jre-headless maven unzip'],
  ['dnf', 'sudo dnf install -y java-21-openjdk-headless maven unzip'],
  ['apk', 'sudo apk add openjdk21-jre-headless maven bash'],
  ['pacman', 'sudo pacman -S --needed jre21-openjdk-headless maven unzip'],
];

/** The home of a Java 17 or newer that `user` can run: JAVA_HOME, PATH, then the usual places. */
export function findJava(env: NodeJS.ProcessEnv, user: ServiceUser): string | undefined {
  const homes = [
    ...['/usr/lib/jvm', '/opt/java', '/usr/java'].flatMap((parent) => list(parent)),
    ...['/opt/homebrew/opt', '/usr/local/opt']
      .flatMap((parent) => list(parent))
      .filter((path) => path.includes('/openjdk')),
    ...list('/Library/Java/JavaVirtualMachines').map((path) => join(path, 'Contents/Home')),
  ];
  const named = env['JAVA_HOME'] ? [join(env['JAVA_HOME'], 'bin/java')] : [];
  const onPath = findCommand('java', env);
  const usual = homes.map((home) => join(home, 'bin/java')).filter((file) => existsSync(file));
  for (const java of [...named, ...(onPath === undefined ? [] : [onPath]), ...usual]) {
    const { home, version } = askJava(java, user);
    if (home !== undefined && version >= FLOOR) return home;
  }
  return undefined;
}

/** The full path of a command on the PATH. */
export function findCommand(name: string, env: NodeJS.ProcessEnv): string | undefined {
  return (env['PATH'] ?? '')
    .split(':')
    .map((folder) => join(folder, name))
    .find((file) => existsSync(file));
}

/** True where packages can be installed without asking: as root on a Debian-like system. */
export function canInstallPackages(env: NodeJS.ProcessEnv): boolean {
  return isRoot() && existsSync('/etc/debian_version') && findCommand('apt-get', env) !== undefined;
}

/** Installs Debian packages; of a list in a list the first that the distribution has. */
export function installPackages(wanted: string[][], report: (line: string) => void): void {
  const run = (command: string, args: string[], quiet = true) =>
    spawnSync(command, args, {
      stdio: ['ignore', quiet ? 'pipe' : 2, quiet ? 'pipe' : 2],
      env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' },
      encoding: 'utf8',
      timeout: 900_000,
    });
  run('apt-get', ['update', '-q']);
  const names = wanted.flatMap((choice) => {
    const found = choice.find((name) => run('apt-cache', ['show', name]).status === 0);
    return [found ?? choice[0] ?? []].flat();
  });
  report(`installing with apt-get: ${names.join(' ')}`);
  const result = run('apt-get', ['install', '-yq', '--no-install-recommends', ...names]);
  if (result.status !== 0)
    throw new SallyportError(
      'services-unavailable',
      `apt-get could not install ${names.join(' ')}:\n${lastLines(result.stderr)}`,
      { next: installSentence(process.env) },
    );
}

/** The one command that makes this machine ready, as a sentence. */
export function installSentence(env: NodeJS.ProcessEnv): string {
  const command = COMMANDS.find(([tool]) => findCommand(tool, env) !== undefined)?.[1];
  return command === undefined
    ? 'Install Java 17 or newer and Maven, or set ELASTICSEARCH_URL.'
    : `Run: ${command}`;
}

function askJava(java: string, user: ServiceUser): { home: string | undefined; version: number } {
  const result = spawnSync(java, ['-XshowSettings:properties', '-version'], {
    ...user,
    cwd: '/',
    encoding: 'utf8',
    timeout: 20_000,
  });
  const read = (name: string) =>
    new RegExp(`^ *${name} = (.+)$`, 'm').exec(result.stderr ?? '')?.[1];
  return { home: read('java.home'), version: Number(read('java.specification.version') ?? 0) };
}

function list(folder: string): string[] {
  try {
    return readdirSync(folder)
      .sort()
      .map((name) => join(folder, name));
  } catch {
    return [];
  }
}

function lastLines(text: string): string {
  return text.trimEnd().split('\n').slice(-5).join('\n');
}
