import { expect } from 'chai';
import { checkImports } from './import-rules.js';

const check = (files: Record<string, string>) =>
  checkImports(Object.keys(files), (file) => files[file] ?? '').map(
    ({ file, sentence }) => `${file} ${sentence}`,
  );

describe('checkImports', () => {
  it('lets allowed imports pass', () => {
    const found = check({
      'transfer/src/a.ts': `import { x } from '@sallyport/shared';\nimport { b } from './b.js';`,
      'transfer/src/b.ts': `import { y } from 'jose';`,
      'transfer/src/a.test.ts': `import { t } from '@sallyport/shared/testing';`,
    });
    expect(found).to.deep.equal([]);
  });

  for (const [file, source, word] of [
    ['shared/src/a.ts', `import { x } from '@sallyport/transfer';`, 'may not know'],
    [
      'request-network/src/a.ts',
      `import { x } from '@sallyport/response-network';`,
      'may not know',
    ],
    ['response-network/src/a.ts', `import { x } from '../../request-network/src/b.js';`, 'leaves'],
    ['transfer/src/a.ts', `import { x } from '@sallyport/shared/dist/log.js';`, 'past the index'],
    ['transfer/src/a.ts', `import { x } from '@sallyport/shared/testing';`, 'past the index'],
    ['transfer/src/a.ts', `const a = await import('@sallyport/request-network');`, 'may not know'],
    ['transfer/src/a.ts', `const a = process.env['A'];`, 'process.env'],
    ['transfer/src/a.ts', `import express from 'express';`, 'express'],
    ['transfer/src/a.ts', `import { Queue } from 'bullmq';`, 'bullmq'],
    ['transfer/src/second-validator/a.ts', `import { b } from '../b.js';`, 'stands apart'],
    ['transfer/src/second-validator/a.ts', `import { jwk } from 'jose';`, 'stands apart'],
    ['response-network/src/a.ts', `import { Client } from '@elastic/elasticsearch';`, 'elastic'],
    ['request-network/src/a.routes.ts', 'await rows(db, `select 1`);', 'noun file'],
  ] as const) {
    it(`refuses ${source} in ${file}`, () => {
      const found = check({ [file]: source });
      expect(found).to.have.length(1);
      expect(found[0]).to.include(word);
    });
  }

  it('names the files of a cycle, and takes type imports for none', () => {
    const cycle = {
      'shared/src/a.ts': `import { b } from './b.js';`,
      'shared/src/b.ts': `export { a } from './a.js';`,
    };
    expect(check(cycle)[0]).to.include('shared/src/a.ts -> shared/src/b.ts -> shared/src/a.ts');
    expect(
      check({ ...cycle, 'shared/src/b.ts': `import type { A } from './a.js';` }),
    ).to.deep.equal([]);
  });
});
