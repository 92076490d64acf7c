import { READERS, type Principal, type Routes } from '@sallyport/shared';
import { readClockOffset } from '../custody/clock-offset.js';
import { readLinkStatus } from '../custody/link-status.js';
import type { OperationsContext } from './context.js';

/** How the crossing stands, in both directions. */
export function addLinkRoutes(routes: Routes<Principal>, { db, node }: OperationsContext): void {
  routes.add({
    method: 'get',
    path: '/v1/link',
    summary: 'What has left, what has arrived and what is missing, per stream',
    roles: READERS,
    responses: { 200: { description: 'The link, each stream, and the offset of the clocks.' } },
    async handler() {
      const { sending, receiving, ...rest } = await readLinkStatus(db, node);
      return {
        status: 200,
        body: {
          ...rest,
          // Dates become RFC 3339 in UTC with milliseconds.
          sending: sending.map(({ waiting, ...one }) => ({ ...one, records_waiting: waiting })),
          receiving: receiving.map(({ waiting, ...one }) => ({ ...one, batches_waiting: waiting })),
          clock_offset: await readClockOffset(db),
        },
      };
    },
  });
}
