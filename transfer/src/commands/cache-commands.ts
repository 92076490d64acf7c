import {
  SallyportError,
  clearCache,
  formatTable,
  optimiseCache,
  scopeOf,
  type Cache,
  type CacheStats,
  type Clock,
  type CommandOutput,
  type Commands,
  type Database,
} from '@sallyport/shared';
import { commandLineActor } from '../open-node.js';

type WithCache = { db: Database; clock: Clock; cache: Cache };
type UseCache = <T>(use: (network: WithCache) => Promise<T>) => Promise<T>;

/** The commands that look at the cache of a network and tidy it, in every process. */
export function cacheCommands(use: UseCache): Commands {
  return {
    'cache stats': {
      usage: 'cache stats',
      does: 'Shows entries, bytes, hits, misses and evictions of the cache, over all processes.',
      run: () => use(async ({ cache }) => show(await cache.stats())),
    },
    'cache clear': {
      usage: 'cache clear --reason TEXT [--dataset NAME | --user LOGIN]',
      does: 'Makes every process forget what the cache holds, or what of a dataset or a user.',
      values: ['reason', 'dataset', 'user'],
      run: ({ values }) =>
        use(async ({ db, clock, cache }) => {
          const { dataset, user } = values;
          if (dataset !== undefined && user !== undefined) {
            throw new SallyportError('usage', 'Give --dataset or --user, not both.');
          }
          const scope = await scopeOf(db, {
            scope: dataset !== undefined ? 'dataset' : user !== undefined ? 'user' : 'all',
            ...(dataset !== undefined && { dataset }),
            ...(user !== undefined && { user }),
          });
          await clearCache(db, cache, { scope, by: actBy(clock, values['reason']) });
          return { text: `Every process forgets it now.`, data: { scope } };
        }),
    },
    'cache optimise': {
      usage: 'cache optimise --reason TEXT',
      does: 'Drops what is too old or too much, in every process.',
      values: ['reason'],
      run: ({ values }) =>
        use(async ({ db, clock, cache }) => {
          await optimiseCache(db, cache, actBy(clock, values['reason']));
          return show(await cache.stats());
        }),
    },
  };
}

function actBy(clock: Clock, reason: string | undefined) {
  if (reason === undefined || reason.length > 500) {
    throw new SallyportError('usage', 'Say why: --reason TEXT, at most 500 characters.');
  }
  return { actor: commandLineActor(), at: clock.now(), reason };
}

function show(stats: CacheStats): CommandOutput {
  const lines = stats.levels.map((level) => [
    level.level,
    level.processes === null ? '' : String(level.processes),
    String(level.entries),
    String(level.bytes),
    String(level.hits),
    String(level.evictions),
  ]);
  const table = formatTable(['LEVEL', 'PROCESSES', 'ENTRIES', 'BYTES', 'HITS', 'EVICTIONS'], lines);
  const looked = stats.hits + stats.misses;
  const rate = looked === 0 ? 'nobody has asked' : `${Math.round((stats.hits / looked) * 100)} %`;
  return {
    text: `${table}\n${stats.name}: ${stats.hits} hits, ${stats.misses} misses (${rate})`,
    data: stats,
  };
}
