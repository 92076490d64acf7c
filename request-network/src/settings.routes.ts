import { Type } from 'typebox';
import {
  actorOf,
  AdminSettingSchema,
  answerVersioned,
  changeLocalSetting,
  ReasonText,
  SETTING_KEY,
  versionOf,
  viewSetting,
  type LocalChange,
  type Principal,
  type Routes,
} from '@sallyport/shared';
import type { RequestNetwork } from './network.js';

const common = {
  path: '/v1/admin/settings/{key}/local',
  roles: ['admin'],
  params: SETTING_KEY,
  responses: {
    200: { description: 'It as it is now.', schema: AdminSettingSchema },
    404: { description: 'There is no setting of this key.' },
    409: { description: 'Somebody else was first.' },
  },
} as const;
const strict = { additionalProperties: false };

/** How admins override, for this network alone, the settings that are marked local. */
export function addLocalSettingRoutes(
  routes: Routes<Principal>,
  { db, clock, replica }: RequestNetwork,
): void {
  const change = async (actor: Principal, wanted: LocalChange) => {
    const by = { actor: actorOf(actor), now: clock.now() };
    const state = await db.transaction((tx) => changeLocalSetting(tx, wanted, by));
    replica.drop();
    return answerVersioned({ version: state.revision, body: viewSetting(state) });
  };

  routes.add({
    ...common,
    method: 'put',
    summary: 'Override a setting for this network alone',
    body: Type.Object({ value: Type.Unknown(), reason: ReasonText }, strict),
    handler: ({ req, params, body, actor }) =>
      change(actor, {
        ...body,
        key: params['key'] ?? '',
        expected: versionOf(req.headers['if-match']),
      }),
  });
  routes.add({
    ...common,
    method: 'delete',
    summary: 'End the override: what was synced counts again',
    body: Type.Object({ reason: ReasonText }, strict),
    handler: ({ req, params, body, actor }) =>
      change(actor, {
        ...body,
        key: params['key'] ?? '',
        value: undefined,
        expected: versionOf(req.headers['if-match']),
      }),
  });
}
