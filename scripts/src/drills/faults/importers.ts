import { fork } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { createLog, openDatabase } from '@sallyport/shared';
import { foldersIn, importBatches, loadKeys, type Node } from '@sallyport/transfer';
import type { TestNode } from '@sallyport/transfer/testing';
import { keepAll } from './world.js';

type Order = Pick<Node, 'name' | 'role'> & { url: string; root: string; now: string };

/** Imports a node's inbox by several processes at once until it is empty; the outcomes of all. */
export async function importInParallel(node: TestNode, processes: number): Promise<string[]> {
  const order: Order = {
    name: node.name,
    role: node.role,
    url: node.test.url,
    root: node.folders.root,
    now: node.clock.now().toISOString(),
  };
  const runs = Array.from({ length: processes }, async () => {
    const child = fork(fileURLToPath(import.meta.url), [JSON.stringify(order)]);
    const outcomes: string[] = [];
    child.on('message', (outcome: string) => outcomes.push(outcome));
    const [code] = (await once(child, 'exit')) as [number | null];
    if (code !== 0) throw new Error(`an importer ended with ${code}`);
    return outcomes;
  });
  return (await Promise.all(runs)).flat();
}

async function importAlone(order: Order): Promise<void> {
  const { name, role, url, root } = order;
  const now = new Date(order.now);
  const folders = foldersIn(root);
  const node: Node = {
    name,
    role,
    folders,
    keys: await loadKeys(folders.keys),
    clock: { now: () => now },
    log: createLog(name, 'silent'),
    account: 'test',
    build: '0.1.0',
    options: {
      crypt: () => 'age',
      paused: () => false,
      notAfterDays: 30,
      keepDays: 30,
      reserveBytes: 0,
      gapHours: () => 24,
      oneWay: false,
      repeat: 3,
      historyDays: 7,
    },
  };
  const db = openDatabase(url);
  // The one that finds the other at work looks again, as a worker does, until nothing is left.
  for (let idle = 0; idle < 2;) {
    const { files } = await importBatches(db, node, keepAll);
    for (const { outcome } of files) process.send?.(outcome);
    idle = files.length === 0 ? idle + 1 : 0;
  }
  await db.destroy();
}

const [, script, text] = process.argv;
if (script === fileURLToPath(import.meta.url) && text !== undefined) {
  await importAlone(JSON.parse(text) as Order);
  process.disconnect?.();
}
