import { createHash } from 'node:crypto';
import { Type, type Static } from 'typebox';
import {
  DisplayName,
  Email,
  HTTP_JSON_CODES,
  JSON_BODY_LIMITS,
  IDENTITY_CHANGED,
  Language,
  Name,
  RoleGrantSchema,
  SallyportError,
  appendAudit,
  compileSchema,
  foldLogin,
  isBcryptAllowed,
  isVerifierAllowed,
  keepRevision,
  listProfileTypes,
  listUsers,
  newId,
  notifyChanged,
  parseJson,
  storeCredentials,
  storeUsers,
  type Argon2Range,
  type Credential,
  type ErrorDetail,
  type Settings,
  type Transaction,
  type User,
} from '@sallyport/shared';
import { sendRecords } from '@sallyport/transfer';
import type { Change } from './change.js';
import { DEFAULT_PROFILE_TYPE } from './init.js';
import { lockNames } from './names.js';
import { LOGIN, userRecords } from './user-accounts.js';

/** What was imported, or would be. */
export type UserImport = { lines: number; logins: string[] };

/** Most accounts of one import; more of them come in several files. */
export const MAX_IMPORT_LINES = 5_000;
export const MAX_IMPORT_BYTES = 8 * 1024 * 1024;
const MAX_ERRORS = 20;

const LineSchema = Type.Object(
  {
    login: Type.String({ minLength: 1, maxLength: 64 }),
    /** argon2id or bcrypt, as other systems export it. */
    verifier: Type.String({ minLength: 20, maxLength: 512 }),
    display_name: Type.Optional(DisplayName),
    email: Type.Optional(Email),
    language: Type.Optional(Language),
    profile_type: Type.Optional(Name),
    roles: Type.Optional(Type.Array(RoleGrantSchema, { maxItems: 10, uniqueItems: true })),
    must_change_password: Type.Optional(Type.Boolean()),
  },
  { additionalProperties: false },
);
const checkLine = compileSchema(LineSchema);
type Line = Static<typeof LineSchema>;

/**
 * Makes accounts with the verifiers of another system, all of them or none, and sends them. A
 * verifier is replaced by one of ours when its owner logs in.
 * @throws SallyportError `bulk-line-invalid` with what is wrong with the first lines that are,
 * `too-many-lines`.
 */
export async function importUsers(
  tx: Transaction,
  text: string,
  { settings, dryRun = false, ...change }: Change & { settings: Settings; dryRun?: boolean },
): Promise<UserImport> {
  const lines = text.replace(/\n$/, '').split('\n');
  if (lines.length > MAX_IMPORT_LINES) {
    throw new SallyportError('too-many-lines', `There are ${lines.length} lines.`, {
      next: `Import at most ${MAX_IMPORT_LINES} accounts at once.`,
    });
  }
  await lockNames(tx);
  const accounts = await readAccounts(tx, lines, settings['argon2.range']);
  const { now, actor, reason = null } = change;
  const users = accounts.map(({ user }) => user);
  const logins = users.map(({ login }) => login);
  if (dryRun) return { lines: lines.length, logins };
  await storeUsers(tx, users, now);
  await storeCredentials(
    tx,
    accounts.map(({ credential }) => credential),
    now,
  );
  const records = accounts.flatMap(({ user, credential }) => userRecords(user, credential));
  await sendRecords(tx, 'identity', records, now);
  for (const { id, ...data } of users) {
    await keepRevision(tx, { kind: 'user', id }, { version: 1, at: now, actor, reason, data });
  }
  const sha256 = createHash('sha256').update(text).digest('hex');
  await appendAudit(tx, {
    at: now,
    actor,
    action: 'user.import',
    subject: sha256,
    details: { users: users.length, first: logins.slice(0, MAX_ERRORS), reason },
  });
  await notifyChanged(tx, IDENTITY_CHANGED);
  return { lines: lines.length, logins };
}

type NewAccount = { user: User; credential: Credential };

async function readAccounts(
  tx: Transaction,
  lines: string[],
  range: Argon2Range,
): Promise<NewAccount[]> {
  const profileTypes = new Map((await listProfileTypes(tx)).map(({ name, id }) => [name, id]));
  const taken = new Set((await listUsers(tx)).map(({ login }) => login));
  const accounts: NewAccount[] = [];
  const errors: ErrorDetail[] = [];
  for (const [index, text] of lines.entries()) {
    try {
      const account = readAccount(text, { profileTypes, taken, range });
      taken.add(account.user.login);
      accounts.push(account);
    } catch (error) {
      if (!(error instanceof SallyportError)) throw error;
      errors.push(atLine(index + 1, error));
    }
  }
  if (errors.length === 0) return accounts;
  throw new SallyportError(
    'bulk-line-invalid',
    `${errors.length} of ${lines.length} lines are not valid; nothing was imported.`,
    { errors: errors.slice(0, MAX_ERRORS), extra: { invalid: errors.length, lines: lines.length } },
  );
}

function readAccount(
  text: string,
  known: { profileTypes: Map<string, string>; taken: Set<string>; range: Argon2Range },
): NewAccount {
  const limits = { ...JSON_BODY_LIMITS.json, codes: HTTP_JSON_CODES };
  const line = checkLine(parseJson(Buffer.from(text), limits));
  const login = foldLogin(line.login);
  if (!LOGIN.test(login)) throw wrong('/login', 'is no login name');
  if (known.taken.has(login)) throw wrong('/login', 'is taken, or stands here twice');
  const profileTypeId = known.profileTypes.get(line.profile_type ?? DEFAULT_PROFILE_TYPE);
  if (profileTypeId === undefined) throw wrong('/profile_type', 'is not known here');
  const verifier = readVerifier(line, known.range);
  const id = newId();
  return {
    user: {
      id,
      version: 1,
      login,
      profile_type_id: profileTypeId,
      roles: line.roles ?? [{ network: 'request', role: 'user' }],
      disabled: false,
      must_change_password: line.must_change_password ?? false,
      profile_version: 0,
      display_name: line.display_name ?? login,
      email: line.email ?? null,
      language: line.language ?? null,
      notices: {},
    },
    credential: { user_id: id, generation: 1, counter: 0, verifier },
  };
}

function readVerifier({ verifier }: Line, { memory, time, parallelism }: Argon2Range): string {
  const allowed = isVerifierAllowed(verifier, {
    memoryKiB: [memory.min, memory.max],
    passes: [time.min, time.max],
    lanes: [parallelism.min, parallelism.max],
  });
  if (!allowed && !isBcryptAllowed(verifier)) {
    throw wrong(
      '/verifier',
      'must be argon2id (v=19) inside the setting argon2.range, or bcrypt with a cost of 8 to 15',
    );
  }
  // As we write it ourselves.
  return verifier.replace(/m=(\d+),p=(\d+),t=(\d+)/, 'm=$1,t=$3,p=$2');
}

function wrong(pointer: string, detail: string): SallyportError {
  return new SallyportError('bad-field', `${pointer} ${detail}.`, {
    errors: [{ pointer, code: 'bad-field', detail }],
  });
}

function atLine(number: number, error: SallyportError): ErrorDetail {
  const [found] = error.errors;
  const detail = found ?? { pointer: '', code: error.code, detail: error.message };
  return { ...detail, pointer: `/${number}${detail.pointer}` };
}
