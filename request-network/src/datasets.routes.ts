import { Type } from 'typebox';
import { DatasetSchema, type Principal, type Routes } from '@sallyport/shared';
import type { RequestNetwork } from './network.js';
import { findRights, listAllowed } from './submissions.js';

const DatasetViewSchema = Type.Omit(DatasetSchema, ['disabled']);

/** What one may query. */
export function addDatasetRoutes(routes: Routes<Principal>, { replica }: RequestNetwork): void {
  routes.add({
    method: 'get',
    path: '/v1/datasets',
    summary: 'What you may query',
    roles: ['user'],
    scope: 'requests:read',
    responses: {
      200: {
        description: 'By name.',
        schema: Type.Object({ items: Type.Array(DatasetViewSchema) }),
      },
    },
    async handler({ actor }) {
      const rules = await replica.rules();
      const items = listAllowed(rules, findRights(rules, actor)).map(
        ({ id: _id, disabled: _disabled, ...shown }) => shown,
      );
      return { status: 200, body: { items } };
    },
  });
}
