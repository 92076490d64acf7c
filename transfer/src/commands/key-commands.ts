import {
  formatTable,
  SallyportError,
  type CommandOutput,
  type Commands,
  type Database,
  type NetworkName,
} from '@sallyport/shared';
import type { UseNode } from './decision-commands.js';
import { choosePassphrase, unlockBy } from '../keys/key-files.js';
import { revokeFarKey, revokeOwnKeys, rotateKeys } from '../keys/key-rotation.js';
import { cardFingerprint, cardText, loadCard, makeKeys, type Card } from '../keys/keys.js';
import { findLink, readFarKeys } from '../keys/links.js';
import { changePassphrase } from '../keys/next-keys.js';
import type { Folders, Node } from '../node.js';
import { commandLineActor } from '../open-node.js';
import { listOwnKeys, refreshKeys } from '../keys/own-keys.js';
import { reAdopt, type ReAdopted } from '../keys/re-adopt.js';
import { confirmOnTerminal } from './terminal.js';

/** Where the keys of a node are, for the commands that need no database. */
export type KeyPlace = {
  role: NetworkName;
  folders: Folders;
  nodeName?: string | undefined;
  passphraseFile?: string | undefined;
};

/** One key as `keys ls` shows it. */
type KeyRow = {
  side: 'own' | 'far';
  kid: string;
  state: 'current' | 'next' | 'retired' | 'revoked';
  since: Date;
  ended_at: Date | null;
  fingerprint: string;
};

/** The commands on the keys of a node and of its far side, and on what follows a restore. */
export function keyCommands(place: () => KeyPlace, use: UseNode): Commands {
  return { ...localCommands(place), ...changeCommands(use) };
}

/** The card on the first line, its fingerprint on the second. */
export function showCard({ card }: { card: Card }): CommandOutput {
  const fingerprint = cardFingerprint(card);
  return {
    text: `${cardText(card)}\nfingerprint ${fingerprint}`,
    data: { card, fingerprint },
  };
}

/** @throws SallyportError `usage` when the node was not given a name. */
export function requireName(name: string | undefined): string {
  if (name !== undefined) return name;
  throw new SallyportError('usage', 'The node has no name yet.', {
    next: 'Set NODE_NAME or add --node NAME: 1 to 16 of a-z, 0-9 and -.',
  });
}

function localCommands(place: () => KeyPlace): Commands {
  return {
    'keys init': {
      usage: 'keys init [--node NAME] [--passphrase]',
      does: 'Makes the keys of this node, protected by a passphrase if told to; never replaces any.',
      values: ['node'],
      switches: ['passphrase'],
      async run({ values, switches }) {
        const { folders, nodeName, role, passphraseFile } = place();
        const name = requireName(values['node'] ?? nodeName);
        const passphrase = switches.has('passphrase')
          ? await choosePassphrase(passphraseFile)
          : undefined;
        return showCard(await makeKeys(folders.keys, name, role, { passphrase }));
      },
    },
    'keys card': {
      usage: 'keys card',
      does: 'Prints the public card of this node and its fingerprint.',
      run: async () => showCard({ card: await loadCard(place().folders.keys) }),
    },
    'keys passphrase': {
      usage: 'keys passphrase [--new-file FILE] [--remove]',
      does: 'Protects the keys by a new passphrase, from a file or asked for, or by none.',
      values: ['new-file'],
      switches: ['remove'],
      async run({ values, switches }) {
        const { folders, passphraseFile } = place();
        const remove = switches.has('remove');
        if (remove && values['new-file'] !== undefined) {
          throw new SallyportError('usage', '--remove and --new-file exclude each other.');
        }
        const unlock = unlockBy(passphraseFile);
        const passphrase = remove ? undefined : await choosePassphrase(values['new-file']);
        await changePassphrase(folders.keys, unlock, passphrase);
        const text = remove
          ? 'The keys need no passphrase any more.'
          : 'The keys need the new passphrase from now on; put it where KEYS_PASSPHRASE_FILE leads.';
        return { text, data: { protected: !remove } };
      },
    },
  };
}

function changeCommands(use: UseNode): Commands {
  return {
    'keys ls': {
      usage: 'keys ls',
      does: 'Lists the keys of this node and of the far side, and which of them count.',
      run: () =>
        use(async ({ db, node }) => {
          const keys = await listKeys(db, node);
          const lines = keys.map((key) => [
            key.side,
            key.state,
            key.kid,
            key.since.toISOString(),
            key.ended_at?.toISOString() ?? '',
          ]);
          return {
            text: formatTable(['SIDE', 'STATE', 'KEY', 'SINCE', 'ENDED'], lines),
            data: keys,
          };
        }),
    },
    'keys rotate': {
      usage: 'keys rotate',
      does: 'Replaces the keys of this node and announces it to the far side, signed by the old key.',
      run: () =>
        use(async ({ db, node }) => {
          const { old, card, retire } = await rotateKeys(db, node, commandLineActor());
          const fingerprint = cardFingerprint(card);
          const text = [
            `New batches are signed by ${card.kid}; the far side learns it from number ${retire.control} of control.`,
            `The key ${old} has signed its last batch. Back up the keys folder.`,
            'Carriers who check with --card need the new card beside the old one, in a folder of cards: keys card prints it.',
            `fingerprint ${fingerprint}`,
          ].join('\n');
          return { text, data: { old, card, fingerprint, retire } };
        }),
    },
    'keys revoke': {
      usage: 'keys revoke [KID] [--yes]',
      does: 'Without KID: replaces stolen or lost keys of this node. With KID: distrusts a far key.',
      positionals: [0, 1],
      switches: ['yes'],
      run: ({ positionals: [kid], switches }) =>
        use(({ db, node }) => {
          const confirmed = { given: switches.has('yes'), flag: '--yes' };
          return kid === undefined || kid === node.keys.kid
            ? revokeOwn(db, node, confirmed)
            : revokeFar(db, node, kid, confirmed);
        }),
    },
    're-adopt': {
      usage: 're-adopt [--epoch N]',
      does: 'Goes on after the database was restored from a backup; N: the last epoch the far side knows.',
      values: ['epoch'],
      run: ({ values }) =>
        use(async ({ db, node }) => {
          const above = readEpoch(values['epoch']);
          const adopted = await reAdopt(db, node, { by: commandLineActor(), above });
          return { text: describeReAdopted(node, adopted), data: adopted };
        }),
    },
  };
}

type Confirmed = { given: boolean; flag: string };

async function revokeOwn(db: Database, node: Node, confirmed: Confirmed): Promise<CommandOutput> {
  await confirmOnTerminal(
    `Revoke the keys of this node (${node.keys.kid}), and send again what is not acknowledged?`,
    confirmed,
  );
  const { card, ...revoked } = await revokeOwnKeys(db, node, commandLineActor());
  const shown = showCard({ card });
  const text = [
    shown.text,
    `The key ${revoked.old} is revoked here. ${describeRaised(revoked)}`,
    'On the far side, before anything of this epoch is taken:',
    ...revoked.valid.map((kid) => `  keys revoke ${kid}`),
    ...(revoked.valid.length > 1 ? ['  (only those that keys ls there still calls current)'] : []),
    '  keys trust CARD-FILE     (the card above; read the fingerprint aloud)',
  ].join('\n');
  return { text, data: { ...(shown.data as object), ...revoked } };
}

async function revokeFar(
  db: Database,
  node: Node,
  kid: string,
  confirmed: Confirmed,
): Promise<CommandOutput> {
  await confirmOnTerminal(
    `Refuse everything that the far key ${kid} signed and that is not here yet?`,
    confirmed,
  );
  const revoked = await revokeFarKey(db, node, { kid, by: commandLineActor() });
  const announced = revoked.filter((other) => other !== kid);
  const text = [
    `The key ${kid} is revoked: what it signed is refused with an alarm from now on.`,
    ...announced.map((other) => `So is ${other}: it came by an announcement of that key.`),
    'Once the far side has made new keys: keys trust CARD-FILE with its new card.',
  ].join('\n');
  return { text, data: { kid, revoked: true, announced } };
}

async function listKeys(db: Database, node: Node): Promise<KeyRow[]> {
  await refreshKeys(db, node).catch((error: unknown) => {
    // What does not fit together is what somebody who looks here wants to see.
    if (!(error instanceof SallyportError)) throw error;
  });
  const own = (await listOwnKeys(db)).map(({ kid, card, state, madeAt, endedAt }) => ({
    side: 'own' as const,
    kid,
    state,
    since: madeAt,
    ended_at: endedAt,
    fingerprint: cardFingerprint(card),
  }));
  const link = await findLink(db);
  const far = link ? [...(await readFarKeys(db, link.link)).entries()] : [];
  return [
    ...own,
    ...far.map(([kid, { card, retire, revokedAt, trustedAt }]) => ({
      side: 'far' as const,
      kid,
      state: revokedAt
        ? ('revoked' as const)
        : retire
          ? ('retired' as const)
          : ('current' as const),
      since: trustedAt,
      ended_at: revokedAt,
      fingerprint: cardFingerprint(card),
    })),
  ];
}

function describeReAdopted(node: Node, adopted: ReAdopted): string {
  const { kept_aside: kept, folder, new_card: card } = adopted;
  const aside =
    kept.length === 0
      ? ['The store holds no batch that this database does not know.']
      : [
          `${kept.length} batch(es) sealed after the backup are kept in store/${folder}/.`,
          'The far side may have applied them. What they carried that this database does not know is not sent again from here.',
        ];
  const stranger = card
    ? [
        `The keys folder holds another key than the backup knew. Unless the far side knows it (keys ls there), it must revoke the old one and trust this card:`,
        showCard({ card }).text,
      ]
    : [];
  return [
    describeRaised(adopted),
    ...aside,
    'What was made here after the backup and had not left is lost; ask the people it concerns.',
    'What the far side sent since then it sends again by itself, once it reads the next batch from here.',
    ...stranger,
    `${card ? 'Then the far side only imports' : 'On the far side nothing is to be done but to import'}: number 1 of control announces epoch ${adopted.epoch}.`,
    `Should it already know epoch ${adopted.epoch} or a higher one (link there), run re-adopt --epoch with that number on ${node.name} again.`,
  ].join('\n');
}

function describeRaised({
  epoch,
  withdrawn,
  queued,
}: {
  epoch: number;
  withdrawn: number;
  queued: number;
}): string {
  return `Epoch ${epoch} has begun: ${withdrawn} batch(es) without a receipt are withdrawn, ${queued} record(s) of theirs leave again.`;
}

function readEpoch(text: string | undefined): number {
  if (text === undefined) return 0;
  if (/^\d{1,4}$/.test(text) && Number(text) >= 1) return Number(text);
  throw new SallyportError('usage', `--epoch takes a number from 1 to 9999, found "${text}".`);
}
