import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import {
  changeProfileType,
  changeSetting,
  disableUser,
  enableUser,
  resetPassword,
} from '@sallyport/response-network';
import { cardFingerprint } from '@sallyport/transfer';
import type { Random } from '../random.js';
import { submitOne } from './people.js';
import { DAY_MS, note, type Run } from './run.js';
import { farOf, SIDES, type Side } from './sides.js';
import { DATASET, LOGINS, type Login, type Site } from './site.js';

/** An administrator changes an account, a password or rights. */
export async function changeUser(run: Run, random: Random): Promise<void> {
  const { site, oracle, step } = run;
  const what = random.pick(['eve', 'mallory', 'mallory', 'password', 'rights'] as const);
  note(run, `administrator changes ${what}`);
  if (what === 'eve' || what === 'mallory') {
    const denied = !oracle.isDenied(what);
    await setRights(site, what, denied);
    oracle.noteRights(step, what, denied);
    if (denied) await submitSeveral(run, random, what);
    return;
  }
  await site.administer(async (tx, by, network) => {
    if (what === 'rights') {
      const description = `as of step ${step}`;
      return changeProfileType(tx, 'analysts', { description, retention_days: 30 }, by);
    }
    const wanted = { login: random.pick(LOGINS), password: `password number ${step}` };
    return resetPassword(tx, wanted, { ...by, settings: network.settings() });
  });
}

/** The request network does not know yet, so that the far side has to refuse. */
async function submitSeveral(run: Run, random: Random, login: Login): Promise<void> {
  for (let count = 3; count > 0; count -= 1) await submitOne(run, random, login);
}

/** Shuts a user out, or lets it in again, on the response network. */
export async function setRights(
  site: Site,
  login: 'eve' | 'mallory',
  denied: boolean,
): Promise<void> {
  await site.administer((tx, by) => {
    if (login === 'mallory') {
      return changeProfileType(tx, 'visitors', { datasets: denied ? [] : [DATASET] }, by);
    }
    return denied ? disableUser(tx, login, by) : enableUser(tx, login, by);
  });
}

/** An administrator changes a setting. */
export async function changeSome(run: Run, random: Random): Promise<void> {
  const key = random.pick(['requests.late_after_hours', 'session.minutes'] as const);
  const value = random.between(72, 100);
  note(run, `setting ${key} ${value}`);
  await run.site.administer((tx, by) => changeSetting(tx, { key, value }, by));
}

/** Copies the database of a network. */
export async function backUp(run: Run, side: Side): Promise<void> {
  note(run, `backup ${side}`);
  await run.site.restart(side, 'backed up');
  run.oracle.noteBackup(side, run.step);
}

/** Puts the backup in the place of the database and goes on by re-adopt; files stay as they are. */
export async function restore(run: Run, side: Side): Promise<void> {
  if (!run.oracle.hasBackup(side)) return;
  note(run, `restore ${side}`);
  run.oracle.noteRestore(side, run.step, run.site.time.now.getTime());
  await run.site.restart(side, 'restored');
  await run.site.open(side).command('re-adopt');
  rememberCard(run, side);
}

/** Replaces the keys of a network. */
export async function rotate(run: Run, side: Side): Promise<void> {
  note(run, `rotate ${side}`);
  await run.site.open(side).command('keys rotate');
  rememberCard(run, side);
}

function rememberCard({ site, cards }: Run, side: Side): void {
  const { card } = site.open(side).node.keys;
  cards.set(card.kid, card);
}

const PATIENCE_MS = 1.5 * DAY_MS;

/**
 * After a restore a network may begin an epoch with a key that the other one does not know, or does
 * not know any more: then people bring its card.
 */
export async function knowEachOther(run: Run): Promise<void> {
  const { site, carrier, cards, strangerSince } = run;
  for (const side of SIDES) {
    const { node } = site.open(side);
    const far = site.open(farOf(side));
    rememberCard(run, side);
    const card = cards.get(carrier.opener(node.name) ?? '');
    const keys = (await far.command('keys ls')) as { side: string; kid: string; state: string }[];
    const known = keys.filter((key) => key.side === 'far');
    if (!card || known.some(({ kid }) => kid === card.kid)) {
      delete strangerSince[side];
      continue;
    }
    const now = site.time.now.getTime();
    if (now - (strangerSince[side] ??= now) < PATIENCE_MS) continue;
    note(run, `${farOf(side)} distrusts the old keys of ${side} and trusts ${card.kid}`);
    for (const { kid } of known.filter(({ state }) => state !== 'revoked')) {
      run.revoked.add(kid);
      await far.command('keys revoke', { positionals: [kid], switches: new Set(['yes']) });
    }
    const path = join(node.folders.root, 'card-to-trust.json');
    await writeFile(path, JSON.stringify(card));
    const values = { fingerprint: cardFingerprint(card) };
    await far.command('keys trust', { positionals: [path], values });
  }
}
