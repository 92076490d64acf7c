import { READERS, type Principal, type Routes } from '@sallyport/shared';
import { readHealth, type HealthContext } from '../health.js';

/** The detailed health of a network, for those who run it. */
export function addHealthRoutes(routes: Routes<Principal>, context: HealthContext): void {
  routes.add({
    method: 'get',
    path: '/healthz',
    summary: 'Versions, database, queues, services, disks, clocks and schedules of this network',
    roles: READERS,
    responses: { 200: { description: 'Each part; `status` is ok or degraded.' } },
    handler: async () => ({ status: 200, body: await readHealth(context) }),
  });
}
