import { rows, type Database } from '@sallyport/shared';

/**
 * How far our clock is ahead of the far side's, in milliseconds: between these two, as nothing
 * arrives before it left. A side of the interval that nothing bounds yet is null.
 */
export type ClockOffset = { least_ms: number | null; most_ms: number | null };

/** Batches looked at, in each direction. */
const LOOKED_AT = 1_000;

/** Reads the interval from the newest batches of both directions. */
export async function readClockOffset(db: Database): Promise<ClockOffset> {
  const [offset] = await rows<ClockOffset>(
    db,
    `select
       (select -min(ms) from (
          select (extract(epoch from c.at - b.sealed_at) * 1000)::bigint as ms
          from custody_events c join outbound_batches b on b.digest = c.digest
          where c.step = 'received' and c.source = 'far'
          order by c.recorded_at desc limit ${LOOKED_AT}) sent) as least_ms,
       (select min(ms) from (
          select (extract(epoch from seen_at - created_at) * 1000)::bigint as ms
          from inbound_batches where state <> 'withdrawn'
          order by seen_at desc limit ${LOOKED_AT}) received) as most_ms`,
  );
  return offset ?? { least_ms: null, most_ms: null };
}
