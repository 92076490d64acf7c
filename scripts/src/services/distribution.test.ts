import { createHash } from 'node:crypto';
import { mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { SallyportError } from '@sallyport/shared';
import { expect } from 'chai';
import { findDistribution, installDistribution, type FetchZip } from './distribution.js';

/** elasticsearch-0.0.1/ with bin/elasticsearch and lib/a.jar, both of mode 0600. */
const ZIP = Buffer.from(
  'UEsDBBQAAAAAAAh3dl0dnfsECgAAAAoAAAAlAAAAZWxhc3RpY3NlYXJjaC0wLjAuMS9iaW4vZWxhc3RpY3NlYXJjaCMhL2Jpbi9z' +
    'aApQSwMEFAAAAAAACHd2XR8I6kYCAAAAAgAAAB0AAABlbGFzdGljc2VhcmNoLTAuMC4xL2xpYi9hLmphcngKUEsBAhQDFAAAAAAA' +
    'CHd2XR2d+wQKAAAACgAAACUAAAAAAAAAAAAAAICBAAAAAGVsYXN0aWNzZWFyY2gtMC4wLjEvYmluL2VsYXN0aWNzZWFyY2hQSwEC' +
    'FAMUAAAAAAAId3ZdHwjqRgIAAAACAAAAHQAAAAAAAAAAAAAAgIFNAAAAZWxhc3RpY3NlYXJjaC0wLjAuMS9saWIvYS5qYXJQSwUG' +
    'AAAAAAIAAgCeAAAAigAAAAAA',
  'base64',
);
const DISTRIBUTION = {
  version: '0.0.1',
  artifact: 'example:elasticsearch:0.0.1:zip',
  sha256: createHash('sha256').update(ZIP).digest('hex'),
};

describe('installDistribution', () => {
  let cache: string;
  let fetched: boolean[];
  const install = (bodies: Buffer[], folder = cache) => {
    const fetchZip: FetchZip = async ({ version }, into, anew) => {
      const body = bodies[fetched.length] as Buffer;
      fetched.push(anew);
      writeFileSync(join(into, `elasticsearch-${version}.zip`), body);
    };
    const rest = { env: process.env, fetchZip, report: () => undefined };
    return installDistribution({ distribution: DISTRIBUTION, cache: folder, ...rest });
  };

  beforeEach(() => {
    cache = mkdtempSync(join(tmpdir(), 'sallyport cache '));
    fetched = [];
  });
  afterEach(() => rmSync(cache, { recursive: true, force: true }));

  it('leaves a distribution that every user can run, and nothing else', async () => {
    const home = await install([ZIP]);
    expect(findDistribution(DISTRIBUTION, [cache])).to.equal(home);
    expect(statSync(join(home, 'bin/elasticsearch')).mode & 0o777).to.equal(0o755);
    expect(statSync(join(home, 'lib/a.jar')).mode & 0o777).to.equal(0o644);
    expect(readdirSync(cache)).to.deep.equal(['elasticsearch-0.0.1']);
  });

  it('fetches once when several ask at the same time', async () => {
    const homes = await Promise.all([install([ZIP]), install([ZIP]), install([ZIP])]);
    expect(new Set(homes).size).to.equal(1);
    expect(fetched).to.deep.equal([false]);
  });

  it('fetches a damaged download once more, past every earlier download', async () => {
    const home = await install([Buffer.from('damaged'), ZIP]);
    expect(fetched).to.deep.equal([false, true]);
    expect(findDistribution(DISTRIBUTION, [cache])).to.equal(home);
  });

  it('refuses what is damaged twice and leaves nothing behind', async () => {
    const error = await failureOf(install([Buffer.from('one'), Buffer.from('two')]));
    expect(error.code).to.equal('checksum-mismatch');
    expect(error.message).to.include(DISTRIBUTION.sha256);
    expect(readdirSync(cache)).to.deep.equal([]);
  });

  it('says which cache folder it cannot write', async () => {
    const file = join(cache, 'a file');
    writeFileSync(file, '');
    const error = await failureOf(install([ZIP], join(file, 'cache')));
    expect(error.code).to.equal('cache-unwritable');
    expect(error.message).to.include(join(file, 'cache'));
    expect(fetched).to.deep.equal([]);
  });
});

async function failureOf(work: Promise<unknown>): Promise<SallyportError> {
  const error = await work.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  expect(error).to.be.instanceOf(SallyportError);
  return error as SallyportError;
}
