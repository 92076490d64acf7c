import { createLog } from '@sallyport/shared';
import { openNetwork, readEnvironment } from '@sallyport/request-network';
import {
  applies,
  openNetwork as openResponseNetwork,
  readEnvironment as readResponseEnvironment,
} from '@sallyport/response-network';
import { exportStream, importBatches } from '@sallyport/transfer';

/**
 * Exports or imports whatever is there and tells the parent by how much the process grew: the highest
 * resident size (kept by the kernel, so no peak is missed) less the one before the work began.
 */
const log = createLog('bench', 'warn');
const before = () => process.memoryUsage.rss() / 1_048_576;
const told = process.argv[2] === 'export' ? await exportAll() : await importAll();
const peakMiB = process.resourceUsage().maxRSS / 1_024;
process.send?.({ records: told.records, growthMiB: peakMiB - told.startMiB });
process.disconnect?.();

async function exportAll() {
  const network = await openNetwork(readEnvironment(), { log });
  const startMiB = before();
  const { records } = await exportStream(network.db, network.node, 'requests');
  await network.close();
  return { records, startMiB };
}

async function importAll() {
  const network = await openResponseNetwork(readResponseEnvironment(), { log });
  const startMiB = before();
  const { records } = await importBatches(network.db, network.node, applies);
  await network.close();
  return { records, startMiB };
}
