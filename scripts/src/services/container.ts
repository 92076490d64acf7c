import { spawnSync } from 'node:child_process';
import { ELASTICSEARCH } from './distribution.js';
import { findCommand } from './java.js';

const IMAGE = `docker.elastic.co/elasticsearch/elasticsearch:${ELASTICSEARCH.version}`;

/** True when a Docker engine answers. */
export function hasContainerEngine(env: NodeJS.ProcessEnv): boolean {
  if (findCommand('docker', env) === undefined) return false;
  const asked = spawnSync('docker', ['version', '--format', '{{.Server.Version}}'], {
    env,
    timeout: 10_000,
  });
  return asked.status === 0;
}

/**
 * The command that runs Elasticsearch in a container for as long as the command lives: docker
 * passes our SIGTERM on. Data stays in a volume of the same name.
 */
export function containerCommand(
  name: string,
  port: number,
  heapMb: number,
): { command: string; args: string[] } {
  // A killed docker command leaves its container behind.
  spawnSync('docker', ['rm', '--force', name], { stdio: 'ignore', timeout: 30_000 });
  const settings = {
    'cluster.name': name,
    'discovery.type': 'single-node',
    'xpack.security.enabled': 'false',
    'cluster.routing.allocation.disk.threshold_enabled': 'false',
    ES_JAVA_OPTS: `-Xms${heapMb}m -Xmx${heapMb}m`,
  };
  return {
    command: 'docker',
    args: [
      'run',
      '--rm',
      `--name=${name}`,
      `--publish=127.0.0.1:${port}:9200`,
      `--volume=${name}:/usr/share/elasticsearch/data`,
      ...Object.entries(settings).flatMap(([key, value]) => ['--env', `${key}=${value}`]),
      IMAGE,
    ],
  };
}
