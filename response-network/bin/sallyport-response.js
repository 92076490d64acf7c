#!/usr/bin/env node
import { runResponseNetwork } from '../dist/main.js';

await runResponseNetwork();
