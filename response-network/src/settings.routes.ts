import { Type } from 'typebox';
import {
  AdminSettingSchema,
  answerVersioned,
  readSettingState,
  ReasonText,
  SETTING_KEY,
  versionOf,
  viewSetting,
  type Principal,
  type Routes,
  type Transaction,
} from '@sallyport/shared';
import { changeBy } from './change.js';
import { previewSetting, PreviewSchema } from './impact.js';
import type { ResponseNetwork } from './network.js';
import { changeSetting, rollBackSetting, unsetSetting } from './setting-rules.js';

const strict = { additionalProperties: false };
const DryRun = Type.Object({ dry_run: Type.Boolean({ default: false }) }, strict);
const changed = {
  200: {
    description: 'It as it is now, or what would change.',
    schema: Type.Union([AdminSettingSchema, PreviewSchema]),
  },
  404: { description: 'There is no setting of this key.' },
  409: { description: 'Somebody else was first.' },
};
type Work = (tx: Transaction) => Promise<unknown>;

/** What admins do with settings; each change leaves for the request network. */
export function addSettingRoutes(routes: Routes<Principal>, network: ResponseNetwork): void {
  const { db, clock } = network;
  const common = {
    roles: ['admin'],
    params: SETTING_KEY,
    query: DryRun,
    responses: changed,
  } as const;
  const changeOrPreview = async (key: string, work: Work, { dry_run }: { dry_run: boolean }) => {
    if (dry_run) return { status: 200, body: await previewSetting(db, key, work) };
    await db.transaction(work);
    const state = await readSettingState(db, key);
    return answerVersioned({ version: state.revision, body: viewSetting(state) });
  };

  routes.add({
    ...common,
    method: 'put',
    path: '/v1/admin/settings/{key}',
    summary: 'Set it for both networks, or see what that would do',
    body: Type.Object({ value: Type.Unknown(), reason: Type.Optional(ReasonText) }, strict),
    async handler({ req, params, query, body: { value, reason }, actor }) {
      const key = params['key'] ?? '';
      const by = changeBy(actor, clock, { reason, expected: versionOf(req.headers['if-match']) });
      return changeOrPreview(key, (tx) => changeSetting(tx, { key, value }, by), query);
    },
  });
  routes.add({
    ...common,
    method: 'post',
    path: '/v1/admin/settings/{key}:unset',
    summary: 'Set it to its default on both networks, or see what that would do',
    body: Type.Object({ reason: ReasonText }, strict),
    async handler({ req, params, query, body: { reason }, actor }) {
      const key = params['key'] ?? '';
      const by = changeBy(actor, clock, { reason, expected: versionOf(req.headers['if-match']) });
      return changeOrPreview(key, (tx) => unsetSetting(tx, key, by), query);
    },
  });
  routes.add({
    ...common,
    method: 'post',
    path: '/v1/admin/settings/{key}:roll-back',
    summary: 'Give it the value of an older version, or see what that would do',
    body: Type.Object({ version: Type.Integer({ minimum: 1 }), reason: ReasonText }, strict),
    async handler({ req, params, query, body: { version, reason }, actor }) {
      const key = params['key'] ?? '';
      const by = changeBy(actor, clock, { reason, expected: versionOf(req.headers['if-match']) });
      return changeOrPreview(key, (tx) => rollBackSetting(tx, key, version, by), query);
    },
  });
}
