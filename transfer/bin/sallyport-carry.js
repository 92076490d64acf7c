#!/usr/bin/env node
import { runCarry } from '../dist/cli.js';

await runCarry();
