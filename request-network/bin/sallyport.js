#!/usr/bin/env node
import { runUserCli } from '../dist/cli.js';

await runUserCli();
