import { expect } from 'chai';
import {
  exitCodeOf,
  formatTable,
  printable,
  runCommandLine,
  type Commands,
} from './command-line.js';
import { SallyportError } from './errors.js';

const COMMANDS: Commands = {
  greet: {
    usage: 'greet NAME [--loud] [--with TEXT]',
    does: 'Greets.',
    positionals: [1, 2],
    values: ['with'],
    switches: ['loud'],
    run: ({ positionals, values, switches }) =>
      Promise.resolve({
        text: `hello ${positionals.join(' ')} ${values['with'] ?? ''} ${switches.has('loud')}`,
        data: { positionals },
      }),
  },
  'user ls': {
    usage: 'user ls',
    does: 'Lists.',
    run: () => Promise.resolve({ text: 'bad news', data: [], exitCode: 7 }),
  },
  break: {
    usage: 'break',
    does: 'Fails.',
    run: () => Promise.reject(new SallyportError('not-found', 'It is gone.', { next: 'Look.' })),
  },
  crash: {
    usage: 'crash',
    does: 'Has a bug.',
    run: () => Promise.reject(new AggregateError([new Error('first'), new Error('second')])),
  },
};

describe('runCommandLine', () => {
  it('hands positionals, values and switches to the command', async () => {
    const said = await run('greet', 'ann', '--loud', '--with', 'tea', 'bob');
    expect(said).to.deep.equal({ out: 'hello ann bob tea true\n', err: '', code: undefined });
  });

  it('prints data for programs', async () => {
    expect((await run('greet', 'ann', '--json')).out).to.equal('{"positionals":["ann"]}\n');
  });

  it('sets the exit code of bad news', async () => {
    expect(await run('user', 'ls')).to.include({ out: 'bad news\n', code: 7 });
  });

  it('prints code, sentence and next step of a failure', async () => {
    expect(await run('break')).to.deep.equal({
      out: '',
      err: 'not-found: It is gone.\nLook.\n',
      code: 6,
    });
    expect(JSON.parse((await run('break', '--json')).err)).to.deep.equal({
      error: { code: 'not-found', message: 'It is gone.', next: 'Look.', errors: [] },
    });
  });

  it('tells what a bug said', async () => {
    expect(await run('crash')).to.include({ err: 'internal: first; second\n', code: 9 });
  });

  for (const argv of [['nope'], ['greet'], ['greet', 'a', 'b', 'c'], ['greet', 'a', '--what']]) {
    it(`calls ${argv.join(' ')} a usage error`, async () => {
      const said = await run(...argv);
      expect(said.code).to.equal(2);
      expect(said.err).to.match(/^usage: .*\nUsage: tool/s);
    });
  }

  it('explains all commands, or one', async () => {
    expect((await run()).out)
      .to.include('tool greet NAME')
      .and.include('tool user ls');
    expect((await run('greet', '--help')).out)
      .to.include('Greets.')
      .and.not.include('user ls');
  });

  async function run(...argv: string[]) {
    const said = { out: '', err: '' };
    const { stdout, stderr } = process;
    const [out, err] = [stdout.write.bind(stdout), stderr.write.bind(stderr)];
    stdout.write = (text: string | Uint8Array) => Boolean((said.out += String(text)));
    stderr.write = (text: string | Uint8Array) => Boolean((said.err += String(text)));
    try {
      await runCommandLine('tool', COMMANDS, argv);
    } finally {
      stdout.write = out;
      stderr.write = err;
    }
    const code = process.exitCode;
    process.exitCode = undefined;
    return { ...said, code };
  }
});

describe('exitCodeOf', () => {
  for (const [code, exit] of [
    ['usage', 2],
    ['config-invalid', 2],
    ['unauthenticated', 3],
    ['role-missing', 3],
    ['tier-forbidden', 4],
    ['query-kind-denied', 4],
    ['rate-limited', 5],
    ['not-found', 6],
    ['BAD_SIGNATURE', 7],
    ['SEQ_FORK', 7],
    ['store-ahead', 7],
    ['card-invalid', 7],
    ['medium-invalid', 7],
    ['gap-code-wrong', 2],
    ['version-conflict', 4],
    ['WAIT_KEY', 9],
    ['store-unavailable', 9],
  ] as const) {
    it(`is ${exit} for ${code}`, () => {
      expect(exitCodeOf(new SallyportError(code, 'x'))).to.equal(exit);
    });
  }
});

describe('printable', () => {
  it('writes out what forges lines or turns the direction of writing', () => {
    const turning = ['202a', '202e', '2066', '2069', '200e', '200f', '061c'];
    for (const code of [...turning, '2028']) {
      const character = String.fromCharCode(parseInt(code, 16));
      expect(printable(`a${character}b`)).to.equal(`a\\u${code}b`);
    }
    expect(printable('a\u001bb\nc\u009f')).to.equal('a\\x1bb\\x0ac\\x9f');
    expect(printable('é 名 مرحبا')).to.equal('é 名 مرحبا');
  });
});

describe('formatTable', () => {
  it('pads columns to their widest cell', () => {
    expect(formatTable(['A', 'LONG'], [['abc', 'd']])).to.equal('A    LONG\nabc  d');
  });
});
