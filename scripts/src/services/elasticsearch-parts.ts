import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { SallyportError } from '@sallyport/shared';
import { hasContainerEngine } from './container.js';
import {
  ELASTICSEARCH,
  fetchWithMaven,
  findDistribution,
  installDistribution,
} from './distribution.js';
import {
  canInstallPackages,
  findCommand,
  findJava,
  installPackages,
  installSentence,
} from './java.js';
import { cacheFolder, canEnter, readableCaches, type Place } from './place.js';

type PartsOptions = { env: NodeJS.ProcessEnv; report: (line: string) => void };

/** What it takes to run Elasticsearch here; `java` is undefined when the distribution brings one. */
export type Parts = { home: string; java: string | undefined };

/** What can be run here, fetched and installed where needed; undefined means a container. */
export async function findParts(place: Place, options: PartsOptions): Promise<Parts | undefined> {
  const { env, report } = options;
  const given = env['ELASTICSEARCH_HOME'];
  if (given) checkHome(given, place);
  const ready = given || findDistribution(ELASTICSEARCH, readableCaches(env));
  const bringsJava =
    given !== undefined && ['jdk', 'jdk.app'].some((name) => existsSync(join(given, name)));
  if (given && bringsJava) return { home: given, java: undefined };

  let java = findJava(env, place.user);
  let maven = findCommand('mvn', env);
  const missing = () => [
    ...(java === undefined ? ['Java 17 or newer'] : []),
    ...(maven === undefined && !ready ? ['Maven'] : []),
  ];
  if (missing().length > 0 && canInstallPackages(env)) {
    report(`${missing().join(' and ')} not found`);
    const jre = ['openjdk-17-jre-headless', 'openjdk-21-jre-headless', 'default-jre-headless'];
    installPackages([jre, ...(ready ? [] : [['maven'], ['unzip']])], report);
    java = findJava(env, place.user);
    maven = findCommand('mvn', env);
  }
  if (java === undefined || missing().length > 0) {
    if (hasContainerEngine(env)) return undefined;
    throw new SallyportError(
      'services-unavailable',
      `Elasticsearch for development needs ${missing().join(' and ')}, which this machine lacks`,
      { next: `${installSentence(env)} Or set ELASTICSEARCH_URL.` },
    );
  }
  if (ready) return { home: ready, java };
  const home = await installDistribution({
    distribution: ELASTICSEARCH,
    cache: cacheFolder(env),
    env,
    fetchZip: fetchWithMaven(maven as string, java, env),
    report,
  });
  return { home, java };
}

function checkHome(home: string, place: Place): void {
  const start = join(home, 'bin/elasticsearch');
  if (existsSync(start) && canEnter(start, place.user)) return;
  throw new SallyportError(
    'services-unavailable',
    `ELASTICSEARCH_HOME: ${start} is missing or cannot be run` +
      (place.user.uid === undefined ? '' : ` by uid ${place.user.uid}`),
    { next: 'Correct ELASTICSEARCH_HOME, or leave it out.' },
  );
}
