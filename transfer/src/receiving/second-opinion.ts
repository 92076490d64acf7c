import { Worker } from 'node:worker_threads';
import type { Question, Verdict } from '../second-validator/judge.js';

/** Bounds of the thread; tests make them smaller. */
export type OpinionLimits = { heapMb: number; minimumMs: number; bytesPerMs: number };

const LIMITS: OpinionLimits = { heapMb: 192, minimumMs: 60_000, bytesPerMs: 1_000 };
const TRIES = 2;
const ENTRY = new URL('../second-validator/thread.js', import.meta.url);

/** A verdict; WAIT_LOCK stands for none: its thread died, ran out of memory, or was late, twice. */
export type Opinion = Verdict;

let thread: Worker | undefined;
let last: Promise<unknown> = Promise.resolve();

/**
 * What the second validator says of a batch, from a thread of its own with a capped heap. It never
 * throws: a thread that fails, runs out of memory or is late says nothing of the batch, so a new one
 * is asked, and then it is no opinion. One question at a time; `bytes` (packed and unpacked together)
 * set the time limit of each try. The thread holds no process open and is kept for later questions.
 */
export function askSecondOpinion(
  question: Question,
  bytes: number,
  limits: OpinionLimits = LIMITS,
): Promise<Opinion> {
  const verdict = last.then(() => ask(question, bytes, limits));
  last = verdict;
  return verdict;
}

/** Ends the thread, after the question under way. */
export async function closeSecondOpinion(): Promise<void> {
  await last;
  await end();
}

async function ask(question: Question, bytes: number, limits: OpinionLimits): Promise<Opinion> {
  let why = '';
  for (let tries = 0; tries < TRIES; tries += 1) {
    try {
      return await answer((thread ??= start(limits)), question, bytes, limits);
    } catch (error) {
      await end();
      why = (error as Error).message;
    }
  }
  return { ok: false, code: 'WAIT_LOCK', sentence: `The second check gave no answer: ${why}.` };
}

function start({ heapMb }: OpinionLimits): Worker {
  // It needs nothing of the environment, where the secrets of the database are.
  const worker = new Worker(ENTRY, {
    env: {},
    resourceLimits: { maxOldGenerationSizeMb: heapMb },
  });
  // Between two questions nobody else listens; a thread that has died is replaced by the next one.
  worker.on('error', () => undefined);
  worker.once('exit', () => {
    if (thread === worker) thread = undefined;
  });
  return worker;
}

function answer(
  worker: Worker,
  question: Question,
  bytes: number,
  { minimumMs, bytesPerMs }: OpinionLimits,
): Promise<Verdict> {
  const limitMs = Math.ceil(minimumMs + bytes / bytesPerMs);
  return new Promise<Verdict>((resolve, reject) => {
    const settle = (act: () => void) => {
      clearTimeout(timer);
      worker.off('message', heard).off('error', failed).off('exit', exited);
      worker.unref();
      act();
    };
    const heard = (verdict: Verdict) => settle(() => resolve(verdict));
    const failed = (error: Error) => settle(() => reject(error));
    const exited = () => settle(() => reject(new Error('its thread has ended')));
    const late = () => settle(() => reject(new Error(`it took longer than ${limitMs} ms`)));
    const timer = setTimeout(late, limitMs);
    worker.on('message', heard).on('error', failed).on('exit', exited);
    worker.ref();
    worker.postMessage(question);
  });
}

async function end(): Promise<void> {
  const ending = thread;
  thread = undefined;
  await ending?.terminate();
}
