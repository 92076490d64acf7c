import { createHash } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect } from 'chai';
import fc from 'fast-check';
import { SallyportError } from './errors.js';
import { checkNewPassword, isBreached, requireBreachedList } from './password-rules.js';
import { defaultSettings } from './settings.js';

describe('password rules', () => {
  const settings = defaultSettings();
  let folder: string;
  let file: string;
  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'sallyport-passwords-'));
    file = join(folder, 'list');
  });
  after(() => rm(folder, { recursive: true, force: true }));

  const bytewise = (a: string, b: string) => Buffer.compare(Buffer.from(a), Buffer.from(b));
  const sha1 = (text: string) => createHash('sha1').update(text).digest('hex').toUpperCase();
  const write = (entries: string[], end = '\n') =>
    writeFile(file, entries.toSorted(bytewise).join('\n') + end);
  const codeOf = async (password: string, breachedFile?: string) => {
    const rules = { settings, breachedFile };
    const error: unknown = await checkNewPassword(
      password,
      { login: 'ada.lovelace1' },
      rules,
    ).catch((err: unknown) => err);
    return error instanceof SallyportError ? error.code : undefined;
  };

  it('ask for enough characters, counted as people do, and bound the bytes', async () => {
    expect(await codeOf('🐎'.repeat(11))).to.equal('bad-field');
    expect(await codeOf('🐎'.repeat(12))).to.equal(undefined);
    expect(await codeOf('🐎'.repeat(256))).to.equal(undefined);
    expect(await codeOf('🐎'.repeat(257))).to.equal('bad-field');
  });

  it('refuse the login name', async () => {
    expect(await codeOf('Ada.Lovelace1')).to.equal('bad-field');
  });

  it('find exactly what is on the list, hashed or plain, whatever stands around it', async () => {
    const word = fc
      .string({ unit: 'grapheme', minLength: 1 })
      .filter((text) => !/[\r\n]/.test(text));
    await fc.assert(
      fc.asyncProperty(
        fc.uniqueArray(word, { minLength: 2, maxLength: 30 }),
        fc.boolean(),
        fc.constantFrom('', '\n'),
        async (words, hashed, end) => {
          const [missing = '', ...listed] = words;
          await write(hashed ? listed.map((each) => `${sha1(each)}:3`) : listed, end);
          await requireBreachedList(file);
          for (const each of listed) expect(await isBreached(file, each)).to.equal(true);
          expect(await isBreached(file, missing)).to.equal(false);
        },
      ),
      { numRuns: 40 },
    );
  });

  it('refuse what is on the list, and a list that cannot be used', async () => {
    await write([sha1('correct horse battery')]);
    expect(await codeOf('correct horse battery', file)).to.equal('bad-field');
    expect(await codeOf('correct horse batterz', file)).to.equal(undefined);
    expect(await codeOf('correct horse batterz', `${file}.gone`)).to.equal('config-invalid');
    await writeFile(file, 'b\n'.repeat(1_000) + 'a\n'.repeat(1_000));
    const error: unknown = await requireBreachedList(file).catch((err: unknown) => err);
    expect(error).to.be.instanceOf(SallyportError).and.to.include({ code: 'config-invalid' });
    await writeFile(file, '');
    expect(await isBreached(file, 'x')).to.equal(false);
  });
});
