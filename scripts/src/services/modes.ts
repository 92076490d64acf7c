import { chmodSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';

/** Lets every user read a folder and run what its owner can run or what lies in a `bin` folder. */
export function openToAll(folder: string, executable = false): void {
  chmodSync(folder, 0o755);
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) openToAll(path, entry.name === 'bin');
    else if (entry.isFile())
      chmodSync(path, executable || (statSync(path).mode & 0o100) !== 0 ? 0o755 : 0o644);
  }
}
