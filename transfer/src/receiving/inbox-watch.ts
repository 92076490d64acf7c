import { watch } from 'node:fs';
import type { Node } from '../node.js';

/** Carriers write a batch in many steps; a moment's quiet means that one is complete. */
const SETTLE_MS = 100;

/**
 * Calls back some time after something changed in the inbox. Where a folder cannot be watched the
 * schedule of the importer has to suffice, which the log says.
 */
export function watchInbox({ folders, log }: Node, changed: () => void): { close(): void } {
  let timer: NodeJS.Timeout | undefined;
  try {
    const watcher = watch(folders.inbox, () => {
      clearTimeout(timer);
      timer = setTimeout(changed, SETTLE_MS);
    });
    watcher.on('error', (err) => log.warn({ err }, 'stopped watching the inbox'));
    return {
      close() {
        clearTimeout(timer);
        watcher.close();
      },
    };
  } catch (err) {
    log.warn({ err }, 'cannot watch the inbox, looking by schedule only');
    return { close: () => undefined };
  }
}
