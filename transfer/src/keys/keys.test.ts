import {
  chmod,
  cp,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rename,
  rm,
  stat,
  writeFile,
} from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { calculateJwkThumbprint } from 'jose';
import { expect } from 'chai';
import { choosePassphrase, locked, unlockBy } from './key-files.js';
import {
  cardFingerprint,
  cardText,
  deriveLink,
  loadCard,
  loadKeys,
  makeKeys,
  parseCard,
} from './keys.js';
import { adoptNextKeys, changePassphrase, makeNextKeys } from './next-keys.js';
import { codeOf, codeOfAsync } from '../test-codes.js';

describe('keys', () => {
  let root: string;
  beforeEach(async () => {
    root = await mkdtemp(join(tmpdir(), 'sallyport-test-'));
  });
  afterEach(() => rm(root, { recursive: true, force: true }));

  describe('makeKeys', () => {
    it('makes private files that load as the same keys', async () => {
      const folder = join(root, 'keys');
      const made = await makeKeys(folder, 'north', 'request');
      const loaded = await loadKeys(folder);
      expect(loaded.card).to.deep.equal(made.card);
      expect(loaded.signKey.equals(made.signKey)).to.equal(true);
      expect(loaded.ageIdentities).to.deep.equal(made.ageIdentities);
      expect((await readdir(folder)).sort()).to.deep.equal(['age.txt', 'card.json', 'sign.jwk']);
      for (const name of ['age.txt', 'sign.jwk']) {
        expect((await stat(join(folder, name))).mode & 0o777).to.equal(0o600);
      }
      expect((await stat(folder)).mode & 0o777).to.equal(0o700);
    });

    it('names the key by its RFC 7638 thumbprint', async () => {
      const { card } = await makeKeys(join(root, 'keys'), 'north', 'request');
      const jwk = { kty: 'OKP', crv: 'Ed25519', x: card.sign };
      expect(card.kid).to.equal(await calculateJwkThumbprint(jwk, 'sha256'));
    });

    it('refuses to overwrite keys, and leaves other files alone', async () => {
      await writeFile(join(root, 'session.jwk'), 'mine');
      const first = await makeKeys(root, 'north', 'request');
      expect(await codeOfAsync(makeKeys(root, 'south', 'response'))).to.equal('keys-exist');
      expect((await loadKeys(root)).kid).to.equal(first.kid);
      expect(await readFile(join(root, 'session.jwk'), 'utf8')).to.equal('mine');
    });

    it('refuses when a single key file is left', async () => {
      await makeKeys(root, 'north', 'request');
      await rm(join(root, 'card.json'));
      expect(await codeOfAsync(makeKeys(root, 'north', 'request'))).to.equal('keys-exist');
    });

    for (const node of ['', 'North', 'a.b', '../x', 'seventeen-letters']) {
      it(`refuses the node name "${node}"`, async () => {
        expect(await codeOfAsync(makeKeys(join(root, 'keys'), node, 'request'))).to.equal('usage');
        expect(await readdir(root)).to.deep.equal([]);
      });
    }

    it('lets one of two that run at the same time win', async () => {
      const tries = await Promise.allSettled([
        makeKeys(root, 'north', 'request'),
        makeKeys(root, 'north', 'request'),
      ]);
      const kids = tries.flatMap((one) => (one.status === 'fulfilled' ? [one.value.kid] : []));
      expect(new Set(kids)).to.deep.equal(new Set([(await loadKeys(root)).kid]));
      expect(kids).to.have.length(1);
    });
  });

  describe('loadKeys', () => {
    it('finishes what a crash interrupted', async () => {
      const folder = join(root, 'keys');
      const made = await makeKeys(folder, 'north', 'request');
      await mkdir(join(folder, '.new-keys'));
      for (const name of ['age.txt', 'card.json']) {
        await rename(join(folder, name), join(folder, '.new-keys', name));
      }
      expect((await loadKeys(folder)).card).to.deep.equal(made.card);
      expect((await readdir(folder)).sort()).to.deep.equal(['age.txt', 'card.json', 'sign.jwk']);
    });

    it('says which file is missing', async () => {
      expect(await codeOfAsync(loadKeys(join(root, 'none')))).to.equal('keys-missing');
      await makeKeys(root, 'north', 'request');
      await rm(join(root, 'age.txt'));
      expect(await codeOfAsync(loadKeys(root))).to.equal('keys-missing');
    });

    it('refuses files of two different sets', async () => {
      await makeKeys(join(root, 'a'), 'north', 'request');
      await makeKeys(join(root, 'b'), 'north', 'request');
      for (const name of ['age.txt', 'sign.jwk']) {
        const mine = await readFile(join(root, 'a', name));
        await writeFile(join(root, 'a', name), await readFile(join(root, 'b', name)));
        expect(await codeOfAsync(loadKeys(join(root, 'a')))).to.equal('card-invalid');
        await writeFile(join(root, 'a', name), mine);
      }
      expect((await loadKeys(join(root, 'a'))).node).to.equal('north');
    });
  });

  describe('keys with a passphrase', () => {
    const passphrase = 'correct horse battery staple';
    const unlock = () => Promise.resolve(passphrase);

    it('open with it only, and the card without', async () => {
      const { card } = await makeKeys(root, 'north', 'request', { passphrase });
      const wrong = () => Promise.resolve('another one entirely');
      expect(await readFile(join(root, 'sign.jwk'), 'utf8')).not.to.contain('"d"');
      expect(await readFile(join(root, 'age.txt'), 'utf8')).not.to.contain('AGE-SECRET-KEY');
      expect(await codeOfAsync(loadKeys(root))).to.equal('keys-locked');
      expect(await codeOfAsync(loadKeys(root, wrong))).to.equal('passphrase-wrong');
      expect((await loadKeys(root, unlock)).card).to.deep.equal(card);
      expect(await loadCard(root)).to.deep.equal(card);
    });

    it('change it, lose it, and keep it for the next keys', async () => {
      const made = await makeKeys(root, 'north', 'request');
      await changePassphrase(root, locked, passphrase);
      const next = await makeNextKeys(root, made, unlock);
      const adopted = await adoptNextKeys(root, next.kid, unlock);
      expect(adopted.kid).to.equal(next.kid);
      expect(adopted.ageIdentities).to.include(made.ageIdentities[0]);
      expect(await codeOfAsync(loadKeys(root))).to.equal('keys-locked');
      await changePassphrase(root, unlock, undefined);
      expect((await loadKeys(root)).kid).to.equal(next.kid);
    });

    it('take it from a file that nobody else may read', async () => {
      const file = join(root, 'passphrase');
      await writeFile(file, `${passphrase}\n`, { mode: 0o640 });
      expect(await codeOfAsync(unlockBy(file)())).to.equal('keys-locked');
      await chmod(file, 0o600);
      expect(await unlockBy(file)()).to.equal(passphrase);
      expect(await choosePassphrase(file)).to.equal(passphrase);
      await writeFile(file, 'short\n');
      expect(await codeOfAsync(choosePassphrase(file))).to.equal('usage');
      expect(await codeOfAsync(unlockBy(join(root, 'none'))())).to.equal('keys-locked');
    });
  });

  describe('adoptNextKeys', () => {
    it('is finished by the next who loads the keys', async () => {
      const made = await makeKeys(root, 'north', 'request');
      const next = await makeNextKeys(root, made, locked);
      // Cut off after the first of the files was moved.
      await cp(join(root, 'next'), join(root, '.swap'), { recursive: true });
      await rename(join(root, '.swap', 'age.txt'), join(root, 'age.txt'));
      expect((await loadKeys(root)).kid).to.equal(next.kid);
    });

    it('leaves the keys alone when no next ones have the kid', async () => {
      const made = await makeKeys(root, 'north', 'request');
      await makeNextKeys(root, made, locked);
      expect((await adoptNextKeys(root, 'another', locked)).kid).to.equal(made.kid);
    });
  });

  describe('parseCard', () => {
    it('reads what was written and refuses every changed member', async () => {
      const { card } = await makeKeys(root, 'north', 'request');
      const other = await makeKeys(join(root, 'other'), 'south', 'response');
      expect(parseCard(cardText(card))).to.deep.equal(card);
      const shown = `${cardText(card)}\nfingerprint ${cardFingerprint(card)}\n`;
      expect(parseCard(shown)).to.deep.equal(card);
      expect(parseCard(JSON.stringify({ card, fingerprint: 'x' }))).to.deep.equal(card);
      const changes: Record<string, unknown>[] = [
        { v: 2 },
        { node: 'Nörth' },
        { role: 'both' },
        { kid: other.kid },
        { sign: other.card.sign },
        { sign: `${card.sign}=` },
        { age: `${card.age.slice(0, -1)}${card.age.endsWith('q') ? 'p' : 'q'}` },
        { age: 'age1pq1xyz' },
        { extra: true },
        { age: undefined },
      ];
      for (const change of changes) {
        const text = JSON.stringify({ ...card, ...change });
        expect(
          codeOf(() => parseCard(text)),
          text,
        ).to.equal('card-invalid');
      }
    });

    it('refuses what is no strict JSON', () => {
      for (const text of ['', '{', '[]', 'null', '{"v":1,"v":1}', '\ufeff{}', '{"__proto__":1}']) {
        expect(
          codeOf(() => parseCard(text)),
          text,
        ).to.equal('card-invalid');
      }
    });
  });

  describe('cardFingerprint and deriveLink', () => {
    it('depend on every card member, on both cards and on their sides only', async () => {
      const { card: a } = await makeKeys(join(root, 'a'), 'north', 'request');
      const { card: b } = await makeKeys(join(root, 'b'), 'south', 'response');
      expect(cardFingerprint(a)).to.match(/^([0-9a-f]{4} ){15}[0-9a-f]{4}$/);
      expect(cardFingerprint({ ...a, node: 'nord' })).not.to.equal(cardFingerprint(a));
      const reordered = Object.fromEntries(Object.entries(a).reverse()) as typeof a;
      expect(cardFingerprint(reordered)).to.equal(cardFingerprint(a));
      expect(deriveLink(a, b)).to.match(/^[a-z2-7]{16}$/);
      expect(deriveLink(a, b)).to.equal(deriveLink({ ...a }, { ...b }));
      expect(deriveLink(a, b)).not.to.equal(deriveLink(b, a));
    });
  });
});
