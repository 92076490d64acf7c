import { expect } from 'chai';
import type { TObject } from 'typebox';
import { ConfigSchema as RequestConfig } from '@sallyport/request-network';
import { ConfigSchema as ResponseConfig } from '@sallyport/response-network';
import { readConfig } from '@sallyport/shared';
import { REFERENCE_PAGES, readPage, renderPage } from './reference-pages.js';

const REWRITE = 'run "node scripts/dist/write-reference.js" and look at the difference';

describe('the reference pages', () => {
  for (const path of REFERENCE_PAGES) {
    it(`${path} says what the code says`, async () => {
      const page = await readPage(path);
      expect(page === (await renderPage(page)), REWRITE).to.equal(true);
    });
  }

  it('list every variable that the tools for users read', async () => {
    const source = await readPage('request-network/src/cli-config.ts');
    const page = await readPage('docs/reference/configuration.md');
    const read = [...source.matchAll(/process\.env\['([A-Z_]+)'\]/g)].map(([, name]) => name);
    expect(read).to.not.have.length(0);
    for (const name of read) expect(page).to.include(`\`${name}\``);
  });
});

describe('.env.example', () => {
  const networks: [string, TObject][] = [
    ['request-network', RequestConfig],
    ['response-network', ResponseConfig],
  ];
  for (const [network, schema] of networks) {
    describe(`of the ${network}`, () => {
      it('names every variable of the schema once, and no other', async () => {
        const named = (await readVariables(network)).map(({ name }) => name);
        expect(named.sort()).to.deep.equal(Object.keys(schema.properties).sort());
      });

      it('is a complete configuration as it stands', async () => {
        const given = (await readVariables(network)).filter(({ active }) => active);
        const env = Object.fromEntries(given.map(({ name, value }) => [name, value]));
        const config: Record<string, unknown> = readConfig(schema, env);
        for (const { name } of given) expect(String(config[name])).to.equal(env[name]);
      });

      it('shows the defaults where there are some', async () => {
        for (const { name, value } of await readVariables(network)) {
          const { default: expected } = schema.properties[name] as { default?: unknown };
          if (expected !== undefined) expect(value, name).to.equal(String(expected));
        }
      });
    });
  }
});

type Variable = { name: string; value: string; active: boolean };

/** The variables of a network's example; those commented out are not active. */
async function readVariables(network: string): Promise<Variable[]> {
  const lines = (await readPage(`${network}/.env.example`)).split('\n');
  return lines.flatMap((line) => {
    const [, off, name, value] = /^(#?)([A-Z_]+)=(.*)$/.exec(line) ?? [];
    return name === undefined ? [] : [{ name, value: value ?? '', active: off === '' }];
  });
}
