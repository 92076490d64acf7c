import { SallyportError } from '@sallyport/shared';
import { startServices } from './development-services.js';

try {
  await main();
} catch (error) {
  if (!(error instanceof SallyportError)) throw error;
  process.stderr.write(`services: ${error.code}: ${error.message}\n`);
  if (error.next !== undefined) process.stderr.write(`services: ${error.next}\n`);
  process.exitCode = 9;
}

/** Starts the development services, prints them as lines of an .env file, stays until a signal. */
async function main(): Promise<void> {
  // A signal during the start waits for its end: only then is known what has to be stopped.
  const ended = new Promise<void>((done) => {
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const)
      process.once(signal, () => done());
  });
  const services = await startServices();
  const alive = setInterval(() => undefined, 60_000);
  process.stdout.write(`DATABASE_URL=${await services.createDatabase('sallyport')}\n`);
  process.stdout.write(`ELASTICSEARCH_URL=${services.elasticsearchUrl}\n`);
  if (services.redisUrl !== undefined) process.stdout.write(`REDIS_URL=${services.redisUrl}\n`);
  process.stderr.write('services: running; Ctrl-C leaves, and ends what nobody else uses\n');
  await ended;
  clearInterval(alive);
  await services.stop();
}
