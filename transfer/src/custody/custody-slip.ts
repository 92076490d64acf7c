import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { Type, type Static } from 'typebox';
import { Sha256, STREAM_NAMES, type StreamName, Timestamp, Uuid } from '@sallyport/shared';
import { writeFileDurably } from '../format/durable-file.js';

/** What a carrier can attest of a batch. */
export const SLIP_STEPS = ['written', 'read_back', 'handed_over', 'received'] as const;

/** How a slip file's name ends. */
export const SLIP_SUFFIX = '.slip.json';
/** The largest slip that is taken in. */
export const SLIP_BYTES = 1024 * 1024;
/** So many events stay below {@link SLIP_BYTES}. */
const EVENTS_PER_SLIP = 3_000;

const oneOf = <T extends string>(values: readonly T[]) =>
  Type.Unsafe<T>({ type: 'string', enum: [...values] });

/** What a carrier leaves for the node whose folder it served. Not signed: it only informs. */
export const CustodySlipSchema = Type.Object(
  {
    v: Type.Literal(1),
    kind: Type.Literal('custody'),
    /** The medium's id. */
    medium: Uuid,
    carrier: Type.String({ minLength: 1, maxLength: 100 }),
    events: Type.Array(
      Type.Object(
        {
          /** Of the batch's manifest. */
          digest: Sha256,
          stream: oneOf<StreamName>(STREAM_NAMES),
          epoch: Type.Integer({ minimum: 1, maximum: 9_999 }),
          seq: Type.Integer({ minimum: 1, maximum: Number.MAX_SAFE_INTEGER }),
          step: oneOf(SLIP_STEPS),
          at: Timestamp,
        },
        { additionalProperties: false },
      ),
      { minItems: 1, maxItems: 10_000 },
    ),
  },
  { additionalProperties: false },
);
export type CustodySlip = Static<typeof CustodySlipSchema>;
export type SlipEvent = CustodySlip['events'][number];

/**
 * Leaves the events in `folder` as `<medium>-<step>.slip.json`; a slip that still lies there is left
 * alone and a number is added to the name.
 * @returns the names of the files.
 */
export async function writeCustodySlips(
  folder: string,
  slip: { medium: string; carrier: string; step: 'written' | 'received' },
  events: readonly SlipEvent[],
): Promise<string[]> {
  const { medium, carrier, step } = slip;
  const taken = new Set(await readdir(folder));
  const names: string[] = [];
  for (let at = 0; at < events.length; at += EVENTS_PER_SLIP) {
    const content: CustodySlip = {
      v: 1,
      kind: 'custody',
      medium,
      carrier,
      events: events.slice(at, at + EVENTS_PER_SLIP),
    };
    const name = freeName(`${medium}-${step}`, taken);
    taken.add(name);
    await writeFileDurably(join(folder, name), Buffer.from(`${JSON.stringify(content)}\n`), {
      mode: 0o644,
    });
    names.push(name);
  }
  return names;
}

function freeName(stem: string, taken: ReadonlySet<string>): string {
  let name = `${stem}${SLIP_SUFFIX}`;
  for (let number = 2; taken.has(name); number++) name = `${stem}-${number}${SLIP_SUFFIX}`;
  return name;
}
