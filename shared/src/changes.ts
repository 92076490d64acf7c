import { isDeepStrictEqual } from 'node:util';
import { Type } from 'typebox';
import { pointerToken } from './json.js';

/** One member that differs between two versions of a thing, by JSON Pointer (RFC 6901). */
export type MemberChange = {
  path: string;
  /** Missing where the member came or went. */
  before?: unknown;
  after?: unknown;
};

/** A {@link MemberChange} as routes answer it. */
export const MemberChangeSchema = Type.Object({
  path: Type.String(),
  before: Type.Optional(Type.Unknown()),
  after: Type.Optional(Type.Unknown()),
});

const MAX_DEPTH = 32;
/** What one audit entry lists of the members that changed. */
const MAX_LISTED = 50;

/**
 * The members that differ, in the order of their names. Lists are compared as a whole, but for lists
 * of things with a name (the fields of a dataset), whose pointer then has the name.
 */
export function listChanges(before: unknown, after: unknown, path = '', depth = 0): MemberChange[] {
  if (isDeepStrictEqual(before, after)) return [];
  const [old, now] = [membersOf(before), membersOf(after)];
  if (!old || !now || depth === MAX_DEPTH) {
    return [
      {
        path,
        ...(before === undefined ? {} : { before }),
        ...(after === undefined ? {} : { after }),
      },
    ];
  }
  return [...new Set([...old.keys(), ...now.keys()])]
    .sort()
    .flatMap((name) =>
      listChanges(old.get(name), now.get(name), `${path}/${pointerToken(name)}`, depth + 1),
    );
}

/** What changed, as an audit entry keeps it: at most 50 members, and how many they were. */
export function auditChanges(before: object, after: object): Record<string, unknown> {
  const changes = listChanges(before, after).filter(({ path }) => path !== '/version');
  return { changes: changes.slice(0, MAX_LISTED), changed: changes.length };
}

function membersOf(value: unknown): Map<string, unknown> | undefined {
  if (typeof value !== 'object' || value === null) return undefined;
  if (!Array.isArray(value)) return new Map(Object.entries(value));
  const named = value as readonly { name?: unknown }[];
  const names = named.map((item) => (item as { name?: unknown } | null)?.name);
  const distinct = names.every((name) => typeof name === 'string') && new Set(names).size;
  if (distinct !== named.length) return undefined;
  return new Map(named.map((item) => [item.name as string, item]));
}
