// The JavaScript kernel: a Node that answers soulbox-interpreter on descriptor 3. docs/kernels.md has the protocol.
//
// Code is evaluated by V8 as its own console does it: top-level await, names that can be declared again, sloppy mode. `import` is
// not part of that; it becomes a call here. TypeScript loses its types first, where this Node can do that.
'use strict';

const fs = require('node:fs');
const inspector = require('node:inspector');
const module_ = require('node:module');
const net = require('node:net');
const path = require('node:path');
const { pathToFileURL } = require('node:url');
const util = require('node:util');

const typescript = process.argv[2] === 'typescript';
const control = new net.Socket({ fd: 3, readable: true, writable: true });
const session = new inspector.Session();
session.connect();

try {
    // When memory is short, the code that took it shall end, and not the interpreter.
    fs.writeFileSync('/proc/self/oom_score_adj', '500');
} catch {
    // Refused: the kernel works without.
}

const send = (message) => control.write(JSON.stringify(message) + '\n');
const post = (method, parameters) =>
    new Promise((resolve, reject) => {
        session.post(method, parameters, (error, result) => (error ? reject(error) : resolve(result)));
    });

/** Modules are found beside the code's folder, as for a file that lies there. */
const requireHere = () => module_.createRequire(path.join(process.cwd(), 'cell.js'));
const importHere = async (specifier, options) => {
    const found = requireHere();
    if (module_.isBuiltin(specifier) || specifier.startsWith('data:') || specifier.startsWith('file:')) {
        return import(specifier, options);
    }
    return import(pathToFileURL(found.resolve(specifier)).href, options);
};
const IMPORT = '__soulbox_import__';
for (const [name, value] of Object.entries({ [IMPORT]: importHere, module: { exports: {} }, exports: {} })) {
    Object.defineProperty(globalThis, name, { value, enumerable: false, writable: true, configurable: true });
}
Object.defineProperty(globalThis, 'require', { get: requireHere, enumerable: false, configurable: true });

/** The value behind what the inspector says about it. */
let taken;
globalThis[Symbol.for('soulbox.take')] = (value) => {
    taken = value;
};
async function valueOf(remote) {
    if (remote.objectId === undefined) {
        if (remote.unserializableValue === undefined) return remote.value;
        if (remote.type === 'bigint') return BigInt(remote.unserializableValue.slice(0, -1));
        return Number(remote.unserializableValue);
    }
    await post('Runtime.callFunctionOn', {
        objectId: remote.objectId,
        functionDeclaration: "function () { globalThis[Symbol.for('soulbox.take')](this); }",
    });
    const value = taken;
    taken = undefined;
    await post('Runtime.releaseObject', { objectId: remote.objectId });
    return value;
}

const STATIC_IMPORT = /^([ \t]*)import\s+(?:([\w$]+)\s*,?\s*)?(?:\*\s*as\s+([\w$]+)\s*|\{([^}]*)\}\s*)?from\s*(['"])(.+?)\5[ \t]*;?/gm;
const BARE_IMPORT = /^([ \t]*)import\s*(['"])(.+?)\2[ \t]*;?/gm;
const DYNAMIC_IMPORT = /(^|[^.\w$'"`])import\s*\(/g;

function withoutImports(code) {
    return code
        .replace(STATIC_IMPORT, (_, indent, standard, all, some, _quote, from) => {
            const called = `await ${IMPORT}(${JSON.stringify(from)})`;
            if (all) return `${indent}var ${all} = ${called};` + (standard ? `var ${standard} = ${all}.default;` : '');
            const names = (some ?? '').replace(/\bas\b/g, ':');
            const parts = [standard && `default: ${standard}`, names.trim() && names].filter(Boolean);
            return `${indent}var { ${parts.join(', ')} } = ${called};`;
        })
        .replace(BARE_IMPORT, (_, indent, _quote, from) => `${indent}await ${IMPORT}(${JSON.stringify(from)});`)
        .replace(DYNAMIC_IMPORT, (_, before) => `${before}${IMPORT}(`);
}

function withoutTypes(code) {
    return module_.stripTypeScriptTypes(code, { mode: 'transform' });
}

/** As a console reads it: braces around everything are an object when they can be one. */
function asExpression(code) {
    const text = code.trim();
    if (!text.startsWith('{') || !text.endsWith('}')) return code;
    try {
        new Function(`return (${text}\n)`);
        return `(${text}\n)`;
    } catch {
        return code;
    }
}

function fail(error) {
    const known = error !== null && typeof error === 'object' && 'message' in error;
    const stack = known && typeof error.stack === 'string' ? error.stack : util.inspect(error);
    // Below this are the driver and the inspector.
    const lines = stack.split('\n');
    const ours = lines.findIndex((line) => line.includes('node:inspector') || line.includes(__filename));
    send({
        type: 'error',
        name: known ? String(error.name) : 'Error',
        value: known ? String(error.message) : util.inspect(error),
        traceback: (ours > 0 ? lines.slice(0, ours) : lines).join('\n'),
    });
}

async function evaluate(code) {
    const { result, exceptionDetails } = await post('Runtime.evaluate', {
        expression: asExpression(withoutImports(typescript ? withoutTypes(code) : code)),
        replMode: true,
        awaitPromise: true,
    });
    const value = await valueOf(exceptionDetails?.exception ?? result);
    if (exceptionDetails) throw value;
    // An awaited value: a promise is of no use to whoever reads the answer.
    return util.types.isPromise(value) ? { value: await value } : { value };
}

let executions = 0;
async function execute({ code, env }) {
    if (code.trim() !== '') executions += 1;
    send({ type: 'count', execution_count: Math.max(executions, 1) });
    Object.assign(process.env, env);
    try {
        const now = generation();
        if (now !== seeded) {
            seeded = now;
            if (drawAnew === undefined) drawAnew = drawFromKernel();
            else drawAnew();
        }
        const { value } = await evaluate(code);
        if (value !== undefined) send({ type: 'display', main: true, data: { 'text/plain': util.inspect(value) } });
    } catch (error) {
        fail(error);
    }
    for (const name of Object.keys(env)) {
        if (Object.hasOwn(inherited, name)) process.env[name] = inherited[name];
        else delete process.env[name];
    }
    send({ type: 'done' });
}

/** Another after each copy of the sandbox that goes on from the same memory; docs/pause.md. */
function generation() {
    try {
        return fs.readFileSync('/run/soulbox/generation', 'utf8');
    } catch {
        return '';
    }
}

/**
 * Neither V8's generator nor that of Node's OpenSSL can be seeded again. So from the first copy on, numbers are read from the kernel,
 * whose own are fresh in each. Keys that Node generates are not among them. Returns what is to be called after each further copy.
 */
function drawFromKernel() {
    const crypto = require('node:crypto');
    const source = fs.openSync('/dev/urandom', 'r');
    const fill = (view) => {
        for (let at = 0; at < view.byteLength; ) at += fs.readSync(source, view, at, view.byteLength - at);
        return view;
    };
    const bytes = (size) => fill(Buffer.alloc(size));
    const bytesOf = (view) => new Uint8Array(view.buffer ?? view, view.byteOffset ?? 0, view.byteLength);
    const below = (range) => {
        const limit = 2 ** 48 - (2 ** 48 % range);
        for (;;) {
            const drawn = bytes(6).readUIntBE(0, 6);
            if (drawn < limit) return drawn % range;
        }
    };
    const later = (callback, value) => void setImmediate(callback, null, value);
    const pool = Buffer.alloc(4096);
    let used = pool.length;
    Math.random = () => {
        if (used === pool.length) {
            fill(pool);
            used = 0;
        }
        used += 8;
        return Number(pool.readBigUInt64LE(used - 8) >> 11n) / 2 ** 53;
    };
    const uuid = () => {
        const id = bytes(16);
        id[6] = (id[6] & 0x0f) | 0x40;
        id[8] = (id[8] & 0x3f) | 0x80;
        return id.toString('hex').replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-');
    };
    const fillSync = (view, offset = 0, size = view.length - offset) => {
        const width = view.BYTES_PER_ELEMENT ?? 1;
        fill(bytesOf(view).subarray(offset * width, (offset + size) * width));
        return view;
    };
    const randomInt = (from, to, callback) => {
        if (to === undefined || typeof to === 'function') [from, to, callback] = [0, from, to];
        const drawn = from + below(to - from);
        return callback ? later(callback, drawn) : drawn;
    };
    const getRandomValues = (view) => (fill(bytesOf(view)), view);
    const replace = (object, functions) => {
        for (const [name, value] of Object.entries(functions)) {
            const { enumerable } = Object.getOwnPropertyDescriptor(object, name);
            Object.defineProperty(object, name, { value, enumerable, writable: true, configurable: true });
        }
    };
    replace(crypto, {
        randomBytes: (size, callback) => (callback ? later(callback, bytes(size)) : bytes(size)),
        randomFillSync: fillSync,
        randomFill: (view, ...rest) => later(rest.pop(), fillSync(view, ...rest)),
        randomInt,
        randomUUID: uuid,
    });
    // That of the module is the same one.
    replace(Object.getPrototypeOf(crypto.webcrypto), { getRandomValues, randomUUID: uuid });
    module_.syncBuiltinESMExports();
    return () => {
        used = pool.length;
    };
}

const inherited = { ...process.env };
let seeded = generation();
let drawAnew;
// What goes wrong in callbacks has no execution to fail.
process.on('uncaughtException', (error) => console.error(error));

let received = [];
control.on('data', (piece) => {
    received.push(piece);
    if (!piece.includes(10)) return;
    const lines = Buffer.concat(received).toString().split('\n');
    received = [Buffer.from(lines.pop())];
    // The interpreter sends the next one only after `done`.
    for (const line of lines) execute(JSON.parse(line));
});
control.on('close', () => process.exit(0));
if (typescript && module_.stripTypeScriptTypes === undefined) {
    send({ type: 'failed', reason: `Node ${process.version} cannot take types out of TypeScript, 22.13 or newer can` });
} else {
    process.removeAllListeners('warning');
    send({ type: 'ready' });
}
