import { renderUnicodeCompact } from 'uqr';
import { digestGroups, type MediaIndex } from './media-index.js';
import { TEXT_MARK } from './medium.js';
import { formatBytes } from './progress.js';

/** What the texts on a medium say. */
export type SlipFacts = {
  index: MediaIndex;
  /** Of the bytes of the INDEX file. */
  sha256: string;
  medium: { id: string; label?: string };
};

/** The slip to print: at most 80 columns and 60 lines, with a code that a phone can read. */
export function paperSlip({ index, sha256, medium }: SlipFacts): string {
  const mine = filesOf(index, medium.id);
  const all = index.media.flatMap(({ files }) => files);
  const place = index.media.findIndex(({ id }) => id === medium.id) + 1;
  const code = `SALLYPORT ${index.set} ${medium.id} ${sha256}`.toUpperCase();
  return [
    `${TEXT_MARK}CUSTODY SLIP`,
    '',
    `Set      ${index.set}, made ${index.made_at}`,
    `Medium   ${medium.id}${medium.label === undefined ? '' : ` (${medium.label})`}`,
    `         number ${place} of ${index.media.length}`,
    `From     ${index.from}`,
    `To       ${index.to}`,
    `Written  by ${index.carrier.name.slice(0, 60)}`,
    `On it    ${mine.length} batch(es), ${formatBytes(bytesOf(mine))}`,
    `In all   ${all.length} batch(es), ${formatBytes(bytesOf(all))}`,
    '',
    'SHA-256 of the INDEX, to read aloud:',
    ...digestGroups(sha256).map((line) => `  ${line}`),
    '',
    'Handed over by ______________________ at __________________',
    'Received by    ______________________ at __________________',
    '',
    // Dark is ink: it is made for paper.
    renderUnicodeCompact(code, { border: 2, invert: true }),
    '',
  ].join('\n');
}

/** One page for whoever finds the medium. */
export function readMeText({ index, sha256, medium }: SlipFacts): string {
  const mine = filesOf(index, medium.id);
  const place = index.media.findIndex(({ id }) => id === medium.id) + 1;
  return [
    `${TEXT_MARK}MEDIUM`,
    '',
    `This medium carries ${mine.length} batch file(s), ${formatBytes(bytesOf(mine))},`,
    `from the node "${index.from}" of one network`,
    `to the node "${index.to}" of another.`,
    `It is number ${place} of ${index.media.length} of the set ${index.set}.`,
    '',
    'Carriers: take it to the other network. Do not change anything on it. The order',
    'in which the media of a set arrive does not matter.',
    '',
    'At the other network:',
    '',
    '    sallyport-carry read MEDIUM --into INBOX',
    '',
    'where MEDIUM is the folder in which this text lies. Without that program, copy',
    `the *.batch files in SALLYPORT/${index.to}/ into the inbox.`,
    'Nothing can be forged or changed unnoticed: every batch is signed by its sender.',
    '',
    'Finders: it is of no use to you. Please bring it back to where it was lost.',
    '',
    `Medium   ${medium.id}`,
    `Made     ${index.made_at} by ${index.carrier.name.slice(0, 60)}`,
    'SHA-256 of the INDEX:',
    ...digestGroups(sha256).map((line) => `  ${line}`),
    '',
  ].join('\n');
}

function filesOf(index: MediaIndex, id: string): MediaIndex['media'][number]['files'] {
  return index.media.find((medium) => medium.id === id)?.files ?? [];
}

function bytesOf(files: readonly { bytes: number }[]): number {
  return files.reduce((sum, { bytes }) => sum + bytes, 0);
}
