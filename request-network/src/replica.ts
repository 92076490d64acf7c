import {
  listDatasets,
  listProfileTypes,
  readSettings,
  type Database,
  type Dataset,
  type Log,
  type ProfileType,
  type Settings,
} from '@sallyport/shared';

/** What the response network says may be done here, as of the last look. */
export type Rules = {
  settings: Settings;
  datasets: ReadonlyMap<string, Dataset>;
  profileTypes: ReadonlyMap<string, ProfileType>;
};

/** The rules, kept in the process for a few seconds and dropped when a batch brings new ones. */
export type Replica = {
  /** At most {@link MAX_AGE_MS} old; on the hot path it does not wait. */
  rules(): Rules | Promise<Rules>;
  /** The settings of the last look, for callers that cannot wait. */
  settings(): Settings;
  drop(): void;
};

const MAX_AGE_MS = 5_000;

/** Opens the replica and takes the first look. */
export async function openReplica(db: Database, log: Log): Promise<Replica> {
  let rules = await readRules(db, log);
  let readAt = performance.now();
  let reading: Promise<Rules> | undefined;
  let generation = 0;

  const read = async (): Promise<Rules> => {
    const mine = generation;
    try {
      const fresh = await readRules(db, log);
      rules = fresh;
      // What was dropped while we read may have changed after our look.
      readAt = mine === generation ? performance.now() : -Infinity;
      return fresh;
    } finally {
      reading = undefined;
    }
  };

  return {
    settings: () => rules.settings,
    rules: () => {
      if (performance.now() - readAt < MAX_AGE_MS) return rules;
      reading ??= read();
      return reading;
    },
    drop() {
      generation += 1;
      readAt = -Infinity;
    },
  };
}

async function readRules(db: Database, log: Log): Promise<Rules> {
  const [settings, datasets, profileTypes] = await Promise.all([
    readSettings(db, log),
    listDatasets(db),
    listProfileTypes(db),
  ]);
  return {
    settings,
    datasets: new Map(datasets.map((dataset) => [dataset.name, dataset])),
    profileTypes: new Map(profileTypes.map((profileType) => [profileType.id, profileType])),
  };
}
