import { parentPort } from 'node:worker_threads';
import { judgeBatch, type Question } from './judge.js';

// The entry of the thread that `second-opinion.ts` owns: one question in, one verdict out. What is
// thrown ends the thread, and the owner reports that as a refusal.
parentPort?.on('message', (question: Question) => {
  void judgeBatch(question).then((verdict) => parentPort?.postMessage(verdict));
});
