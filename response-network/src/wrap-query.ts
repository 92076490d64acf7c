import { POLICY_TABLE, type Tier } from '@sallyport/shared';
import type { SearchableDataset } from './dataset-sources.js';

/**
 * The body that is really searched, as JSON text: the user's query under the dataset's row rule, with
 * the tier's time limit, and no field that the dataset does not list.
 */
export function wrapQuery(
  query: Readonly<Record<string, unknown>>,
  { listedFields, rowFilter }: SearchableDataset,
  tier: Tier,
): string {
  const asked = query['query'] ?? { match_all: {} };
  const source = query['_source'];
  const narrowed = Array.isArray(source) || source === false;
  return JSON.stringify({
    ...query,
    query: rowFilter === null ? asked : { bool: { must: [asked], filter: [rowFilter] } },
    _source: narrowed ? source : listedFields,
    size: query['size'] ?? POLICY_TABLE.defaultSize,
    track_total_hits: query['track_total_hits'] ?? true,
    timeout: `${POLICY_TABLE.tiers[tier].searchTimeoutMs}ms`,
  });
}
