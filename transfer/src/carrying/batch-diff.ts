import { readHeaderLine } from '../format/batch-file.js';
import { readHeader } from '../format/manifest.js';

/** One field of two manifests that is not the same; absent on a side that lacks it. */
export type FieldDifference = { field: string; a?: unknown; b?: unknown };

/** What two batch files state differently. */
export type BatchDifference = {
  /** Byte for byte the same line 1, and so the same batch. */
  same: boolean;
  a: { file: string; digest: string; bytes: number };
  b: { file: string; digest: string; bytes: number };
  fields: FieldDifference[];
};

/**
 * Compares line 1 of two batch files field by field: numbers, times, counts of records by type, body,
 * receipts. Bodies are not opened; no signature is checked.
 * @throws SallyportError for what is no batch; system errors of reading.
 */
export async function diffBatches(a: string, b: string): Promise<BatchDifference> {
  const [left, right] = await Promise.all([a, b].map(readOne));
  if (!left || !right) throw new Error('two files were asked for');
  const names = [...new Set([...left.fields.keys(), ...right.fields.keys()])].sort();
  const fields = names.flatMap((field): FieldDifference[] => {
    const [mine, theirs] = [left.fields.get(field), right.fields.get(field)];
    if (JSON.stringify(mine) === JSON.stringify(theirs)) return [];
    return [
      {
        field,
        ...(mine === undefined ? {} : { a: mine }),
        ...(theirs === undefined ? {} : { b: theirs }),
      },
    ];
  });
  return { same: left.line.equals(right.line), a: left.about, b: right.about, fields };
}

async function readOne(file: string) {
  const { line, size } = await readHeaderLine(file);
  const { manifest, digest, kid } = readHeader(line);
  const fields = new Map<string, unknown>([
    ['kid', kid],
    ['file.bytes', size],
  ]);
  flatten('', manifest, fields);
  return { line, fields, about: { file, digest, bytes: size } };
}

/** Lists stay whole: a list of ranges is one thing to a reader. */
function flatten(prefix: string, value: unknown, fields: Map<string, unknown>): void {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    fields.set(prefix, value);
    return;
  }
  for (const [key, inner] of Object.entries(value)) {
    flatten(prefix === '' ? key : `${prefix}.${key}`, inner, fields);
  }
}
