import { randomUUID } from 'node:crypto';
import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Type, type Static } from 'typebox';
import { Value } from 'typebox/value';
import { isAlive, processStamp } from '../../process-lock.mjs';
import type { Place } from './place.js';

const Process = Type.Object({ pid: Type.Integer(), stamp: Type.String() });
const Running = Type.Object({ process: Process, port: Type.Optional(Type.Integer()) });
const State = Type.Object({
  postgres: Type.Optional(Running),
  elasticsearch: Type.Optional(Running),
  /** Who uses them; the last one to leave ends them. */
  users: Type.Array(Type.Object({ id: Type.String(), process: Process })),
});

/** What is known of the services of one clone. Ports stay known after an end, to be used again. */
export type State = Static<typeof State>;
export type Running = Static<typeof Running>;

/** Reads the state; one that is missing or damaged counts as empty, dead users are left out. */
export function readState(place: Place): State {
  let found: unknown;
  try {
    found = JSON.parse(readFileSync(stateFile(place), 'utf8'));
  } catch {
    found = undefined;
  }
  const state = Value.Check(State, found) ? found : { users: [] };
  return { ...state, users: state.users.filter((user) => isAlive(user.process)) };
}

/** Replaces the state in one step. */
export function writeState(place: Place, state: State): void {
  const file = stateFile(place);
  writeFileSync(`${file}.new`, `${JSON.stringify(state, null, 2)}\n`, { mode: 0o600 });
  renameSync(`${file}.new`, file);
}

/** Notes that this process uses the services; `id` takes it back. */
export function addUser(state: State): string {
  const id = randomUUID();
  const stamp = processStamp(process.pid) ?? '';
  state.users.push({ id, process: { pid: process.pid, stamp } });
  return id;
}

function stateFile(place: Place): string {
  return join(place.folder, 'state.json');
}
