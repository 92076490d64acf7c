import { writeFile } from 'node:fs/promises';
import { resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { REFERENCE_PAGES, readPage, renderPage } from './reference-pages.js';

/** `node scripts/dist/write-reference.js`: brings the generated parts of the reference up to date. */
const root = resolve(fileURLToPath(import.meta.url), '../../..');

for (const path of REFERENCE_PAGES) {
  const before = await readPage(path);
  const after = await renderPage(before);
  if (after !== before) await writeFile(resolve(root, path), after);
  console.log(`${path}: ${after === before ? 'was up to date' : 'written'}`);
}
