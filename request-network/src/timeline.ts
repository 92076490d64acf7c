import { FINAL_STATUSES, rows, type Database } from '@sallyport/shared';
import { BATCH_OF_REQUEST, readCustody, type CustodyEvent } from '@sallyport/transfer';
import type { EventView } from './request-schemas.js';
import { notFound } from './requests.js';

type OwnEvent = {
  at: Date;
  network: EventView['network'];
  event: string;
  actor: string | null;
  batch_id: string | null;
  batch_seq: number | null;
  digest: string | null;
  reason: string | null;
};
type Surroundings = {
  batch_id: string | null;
  seq: number | null;
  digest: string | null;
  sealed_at: Date | null;
  handed_over_at: Date | null;
  acked_at: Date | null;
  result_batch_id: string | null;
  result_seq: number | null;
  result_digest: string | null;
  times: { received_at: string; started_at: string | null; finished_at: string } | null;
};

const MAX_EVENTS = 1_000;
/** Steps of the request's batch that its statuses tell, and those that happen on the far side. */
const TOLD_BY_STATUS: readonly string[] = ['sealed', 'handed_over', 'receipt'];
const ACROSS: readonly string[] = ['received', 'verified', 'applied'];

/**
 * What happened to a request of the user on both networks, in the order in which it must have
 * happened: clocks of different networks are shown but not compared.
 * @throws SallyportError `not-found`, for somebody else's too.
 */
export async function readTimeline(
  db: Database,
  { id, userId }: { id: string; userId: string },
): Promise<EventView[]> {
  const [around] = await rows<Surroundings>(
    db,
    `select b.id as batch_id, b.seq, b.digest, b.sealed_at, b.handed_over_at, b.acked_at,
       s.batch_id as result_batch_id, i.seq as result_seq, i.digest as result_digest, s.times
     from requests r ${BATCH_OF_REQUEST} left join results s on s.request_id = r.id
       left join inbound_batches i on i.id = s.batch_id
     where r.id = ? and r.user_id = ?`,
    [id, userId],
  );
  if (!around) throw notFound(id);
  const own = await rows<OwnEvent>(
    db,
    `select e.at, e.network, e.event, e.actor, e.batch_id, i.seq as batch_seq, e.digest, e.reason
     from request_events e left join inbound_batches i on i.id = e.batch_id
     where e.request_id = ? order by e.id limit ${MAX_EVENTS}`,
    [id],
  );
  const events = mergeEvents(own.map(viewOwn), batchEvents(around));
  const carried = await readCarried(db, around);
  insertAfter(events, 'batched', carried.out);
  insertBefore(events, (event) => event === 'processing' || isResultNews(event), carried.far);
  insertBefore(events, isResultNews, [...farEvents(around), ...carried.back]);
  return events;
}

/**
 * The custody of the request's batch, before it crossed and on the far side, and of the batch that
 * brought the result. Users see steps and times, not who carried what on which medium; what the
 * statuses say already is left out.
 */
async function readCarried(
  db: Database,
  around: Surroundings,
): Promise<{ out: EventView[]; far: EventView[]; back: EventView[] }> {
  const { batch_id: id, seq, digest, result_batch_id: resultId } = around;
  const view = async (batchId: string | null, number: number | null, name: string | null) => {
    if (batchId === null || name === null) return [];
    const batch = { id: batchId, seq: number };
    return (await readCustody(db, name)).map((event) => ({
      step: event.step,
      view: viewCustody(event, batch, name),
    }));
  };
  const sent = await view(id, seq, digest);
  const back = await view(resultId, around.result_seq, around.result_digest);
  const news = sent.filter(({ step }) => !TOLD_BY_STATUS.includes(step));
  return {
    out: news.filter(({ step }) => !ACROSS.includes(step)).map((each) => each.view),
    far: news.filter(({ step }) => ACROSS.includes(step)).map((each) => each.view),
    back: back.filter(({ step }) => step !== 'receipt').map((each) => each.view),
  };
}

function viewCustody(
  { step, at, source }: CustodyEvent,
  batch: { id: string; seq: number | null },
  digest: string,
): EventView {
  const network = source === 'far' ? ('response' as const) : ('request' as const);
  const event = `custody.${step}`;
  return { at: at.toISOString(), network, event, actor: null, batch, digest, reason: null };
}

function insertAfter(events: EventView[], event: string, more: EventView[]): void {
  const at = events.findIndex((each) => each.event === event);
  events.splice(at === -1 ? events.length : at + 1, 0, ...more);
}

function insertBefore(
  events: EventView[],
  isNext: (event: string) => boolean,
  more: EventView[],
): void {
  const at = events.findIndex((each) => isNext(each.event));
  events.splice(at === -1 ? events.length : at, 0, ...more);
}

/** Events of both lists in the order of our own clock; far news keep their place. */
function mergeEvents([first, ...rest]: EventView[], waiting: EventView[]): EventView[] {
  const merged = first ? [first] : [];
  const left = [...waiting];
  for (const event of rest) {
    while (event.network === 'request' && left[0] && left[0].at <= event.at) {
      merged.push(left.shift() as EventView);
    }
    merged.push(event);
  }
  return [...merged, ...left];
}

function isResultNews(event: string): boolean {
  return (
    event === 'late_result' ||
    event === 'partial_result' ||
    (FINAL_STATUSES as readonly string[]).includes(event)
  );
}

function viewOwn(event: OwnEvent): EventView {
  const { at, network, event: what, actor, batch_id: id, batch_seq: seq, digest, reason } = event;
  const batch = id === null ? null : { id, seq };
  return { at: at.toISOString(), network, event: what, actor, batch, digest, reason };
}

/** The states that a whole batch shares, as if they had happened to each request in it. */
function batchEvents(around: Surroundings): EventView[] {
  const { batch_id: id, seq, digest } = around;
  if (id === null || around.sealed_at === null) return [];
  const moments: [string, Date | null][] = [
    ['batched', around.sealed_at],
    ['exported', around.handed_over_at],
    ['processing', around.acked_at],
  ];
  return moments.flatMap(([event, at]) =>
    at === null
      ? []
      : [
          {
            at: at.toISOString(),
            network: 'request' as const,
            event,
            actor: null,
            batch: { id, seq },
            digest,
            reason: null,
          },
        ],
  );
}

/** What the result tells of its making, on the far side's clock. */
function farEvents({ times, result_batch_id: id }: Surroundings): EventView[] {
  if (!times) return [];
  const moments: [string, string | null][] = [
    ['received', times.received_at],
    ['started', times.started_at],
    ['finished', times.finished_at],
  ];
  return moments.flatMap(([event, at]) =>
    at === null
      ? []
      : [
          {
            at,
            network: 'response' as const,
            event,
            actor: null,
            batch: id === null ? null : { id, seq: null },
            digest: null,
            reason: null,
          },
        ],
  );
}
