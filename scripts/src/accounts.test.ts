import { expect } from 'chai';
import fc from 'fast-check';
import {
  MIGRATIONS,
  requestApplies,
  sendAccount as sendFromRequest,
} from '@sallyport/request-network';
import {
  applies as responseApplies,
  disableUser,
  enableUser,
  migrations,
  resetPassword,
  sendAccount as sendFromResponse,
  updateUser,
} from '@sallyport/response-network';
import {
  changeOwnProfile,
  defaultSettings,
  findUser,
  listCredentials,
  listUsers,
  newId,
  readCredential,
  replaceVerifier,
  storeCredential,
  storeProfileTypes,
  storeUsers,
  type NetworkName,
  type Principal,
  type User,
} from '@sallyport/shared';
import { createTestDatabase, type TestDatabase } from '@sallyport/shared/testing';

const NOW = new Date('2026-03-01T12:00:00.000Z');
const ADMIN = { actor: 'user:root', now: NOW, reason: 'a test' };
const VERIFIER =
  '$argon2id$v=19$m=19456,t=2,p=1$OxHNmMA7bVsKZLhQRg8lOQ$4Ja2Tt3Zl7CHzGd0Gk4pVwLAqYk0CxzHf3VIsq0Q';

type Step =
  | { act: 'password' | 'profile'; on: NetworkName; n: number }
  | { act: 'reset' | 'disable' | 'enable' | 'rename' | 'snapshot'; n: number }
  /** Brings some of what was sent: from where, in which order, how often. */
  | { act: 'carry'; from: NetworkName; order: number; twice: boolean };

type Line = { t: string; id: string; d: object };

describe('accounts on both networks', () => {
  const sides = {} as Record<NetworkName, TestDatabase>;
  const settings = defaultSettings();
  const applies = {
    request: requestApplies({ settings: () => settings } as Parameters<typeof requestApplies>[0]),
    response: responseApplies,
  };
  before(async () => {
    sides.request = await createTestDatabase(MIGRATIONS);
    sides.response = await createTestDatabase(migrations);
  });
  after(async () => {
    await sides.request.drop();
    await sides.response.drop();
  });

  /** What a side has sent so far, in its order. */
  const sent = async (from: NetworkName): Promise<Line[]> => {
    const found = await sides[from].db<{ line: string }>('outbox_records').orderBy('position');
    return found.map(({ line }) => JSON.parse(line) as Line);
  };

  const apply = async (to: NetworkName, lines: Line[], kind = 'delta') => {
    if (lines.length === 0) return;
    const batch = { id: newId(), kind } as never;
    await sides[to].db.transaction(async (tx) => {
      await tx.raw(`create temporary table if not exists incoming (
        line integer, t text, id uuid, v integer, at timestamptz, d jsonb, text text, code text,
        detail text, batch_id uuid) on commit delete rows`);
      await tx('incoming').insert(
        lines.map(({ t, id, d }, n) => ({
          line: n + 1,
          t,
          id,
          v: 1,
          at: NOW,
          d: JSON.stringify(d),
        })),
      );
      for (const type of new Set(lines.map(({ t }) => t))) {
        await applies[to][type as keyof typeof applies.request]?.(tx, batch, NOW);
      }
    });
  };

  /** A user of both sides whom both know. */
  const settle = async (): Promise<User> => {
    const user: User = {
      id: newId(),
      version: 1,
      login: `u${newId()}`,
      profile_type_id: newId(),
      roles: [{ network: 'request', role: 'user' }],
      disabled: false,
      must_change_password: true,
      profile_version: 0,
      display_name: 'first',
      email: null,
      language: null,
      notices: {},
    };
    const credential = { user_id: user.id, generation: 1, counter: 0, verifier: `${VERIFIER}0Eo` };
    for (const { db } of Object.values(sides)) {
      await db('outbox_records').delete();
      await db('users').delete();
      await db('credentials').delete();
      await db.transaction(async (tx) => {
        await storeUsers(tx, [user], NOW);
        await storeCredential(tx, credential, NOW);
      });
    }
    await sides.response.db.transaction((tx) => storeProfileTypes(tx, [], NOW));
    return user;
  };

  const take = async (user: User, step: Step): Promise<void> => {
    const { id } = user;
    const actor = { userId: id, login: user.login } as Principal;
    const onResponse = sides.response.db;
    switch (step.act) {
      case 'password': {
        const { db } = sides[step.on];
        const from = await readCredential(db, id);
        if (!from) return;
        const sendAccount = step.on === 'request' ? sendFromRequest : sendFromResponse;
        const verifier = `${VERIFIER}${step.n}`;
        const change = { userId: id, from, verifier, network: step.on, sendAccount, now: NOW };
        await db.transaction((tx) => replaceVerifier(tx, change));
        return;
      }
      case 'profile': {
        const sendAccount = step.on === 'request' ? sendFromRequest : sendFromResponse;
        const context = { network: step.on, sendAccount, now: NOW };
        const wanted = { display_name: `by ${step.on} ${step.n}` };
        await sides[step.on].db.transaction((tx) =>
          changeOwnProfile(tx, { actor, wanted }, context),
        );
        return;
      }
      case 'reset':
        await onResponse.transaction((tx) =>
          resetPassword(tx, { id, password: `a password ${step.n}` }, { ...ADMIN, settings }),
        );
        return;
      case 'disable':
        await onResponse.transaction((tx) => disableUser(tx, { id }, ADMIN));
        return;
      case 'enable':
        await onResponse.transaction((tx) => enableUser(tx, { id }, ADMIN));
        return;
      case 'rename': {
        const wanted = { displayName: `by an admin ${step.n}` };
        await onResponse.transaction((tx) => updateUser(tx, { id }, wanted, ADMIN));
        return;
      }
      case 'snapshot':
        await apply('request', await snapshot(), 'snapshot');
        return;
      case 'carry':
        await carry(step);
    }
  };

  const snapshot = async (): Promise<Line[]> => {
    const { db } = sides.response;
    const users = (await listUsers(db)).map(({ id, ...d }) => ({ t: 'user', id, d }));
    const credentials = (await listCredentials(db)).map(({ user_id: id, ...d }) => ({
      t: 'user.credential',
      id,
      d,
    }));
    return [...users, ...credentials];
  };

  /** Identity comes in its order, from any point on; accounts in any order. */
  const carry = async ({ from, order, twice }: Step & { act: 'carry' }) => {
    const lines = await sent(from);
    const to = from === 'request' ? 'response' : 'request';
    const start = lines.length === 0 ? 0 : order % lines.length;
    const chosen = from === 'response' ? lines.slice(0, start + 1) : turned(lines, start);
    for (let times = twice ? 2 : 1; times > 0; times -= 1) await apply(to, chosen);
  };

  const state = async ({ db }: TestDatabase, id: string) => {
    const user = await findUser(db, id);
    const { profile_version, display_name, disabled, must_change_password } = user ?? {};
    const credential = await readCredential(db, id);
    return { profile_version, display_name, disabled, must_change_password, credential };
  };

  it('end the same, whatever is changed where and in whatever order it is carried', async () => {
    const n = fc.nat({ max: 9 });
    const on = fc.constantFrom<NetworkName>('request', 'response');
    const step = fc.oneof(
      fc.record({ act: fc.constantFrom('password' as const, 'profile' as const), on, n }),
      fc.record({ act: fc.constantFrom('disable', 'enable', 'rename', 'snapshot'), n }),
      fc.record({
        act: fc.constant('carry' as const),
        from: on,
        order: fc.nat({ max: 20 }),
        twice: fc.boolean(),
      }),
    ) as fc.Arbitrary<Step>;
    const reset = fc.constant<Step>({ act: 'reset', n: 1 });
    const steps = fc.tuple(
      fc.array(step, { maxLength: 7 }),
      fc.option(reset),
      fc.array(step, { maxLength: 7 }),
    );
    await fc.assert(
      fc.asyncProperty(steps, async ([before, middle, after]) => {
        const user = await settle();
        for (const each of [...before, ...(middle ? [middle] : []), ...after]) {
          await take(user, each);
        }
        await apply('response', await sent('request'));
        await apply('request', await sent('response'));
        const [request, response] = [
          await state(sides.request, user.id),
          await state(sides.response, user.id),
        ];
        expect(request).to.deep.equal(response);
      }),
      { numRuns: 25 },
    );
  });
});

function turned<T>(items: T[], by: number): T[] {
  return [...items.slice(by), ...items.slice(0, by)].reverse();
}
