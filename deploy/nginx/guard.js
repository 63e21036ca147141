// Lets a request through to Triton only if Triton's HTTP front end can read it.
//
// Triton 2.51 answers 500 to JSON that it cannot read, as if the server had failed. Deeply nested JSON and wrong lengths
// crash it. This guard refuses such requests with a 4xx and the reason. It passes on valid requests of KServe's v2 protocol
// unchanged, byte for byte. The guard does not check the texts themselves: the model does.

import fs from 'fs';
import json from 'json.js';

const LARGEST_LENGTH = 2147483647;
const MOST_TEXTS = 4096;
const MOST_OUTPUTS = 16;
const CLOSED_PARAMETER = /^(shared_memory_|sequence_)/;
const TRUTH_VALUES = ['binary_data', 'binary_data_output'];
const WHOLE_NUMBERS = ['binary_data_size', 'classification', 'priority', 'timeout'];

export default { bodyOf, check, errorBody, isObject, refusal };

function check(r) {
    let wrong = null;
    try {
        inspect(r);
    } catch (error) {
        if (error.status === undefined) {
            throw error;
        }
        wrong = error;
    }
    if (wrong === null) {
        r.internalRedirect('@triton');
        return;
    }
    r.headersOut['Content-Type'] = 'application/json';
    r.return(wrong.status, errorBody(wrong));
}

function errorBody(wrong) {
    return JSON.stringify({ error: wrong.message.slice(0, 500) }) + '\n'; // it may quote a name of any length
}

// Throws a refusal if the request must not reach Triton.
function inspect(r) {
    const file = r.variables.request_body_file;
    const body = file ? openFile(file) : bodyInMemory(bodyOf(r));
    try {
        // The same variable becomes Triton's header.
        const said = r.variables.http_inference_header_content_length;
        if (said !== undefined && said !== '' && (!/^[0-9]{1,4}$/.test(said) || Number(said) > body.length)) {
            throw refusal(400, 'Inference-Header-Content-Length: must be a whole number, at most the body\'s length');
        }
        const length = said === undefined || said === '' ? body.length : Number(said);
        const message = findWrong(json.outline(body.head(length)), body, length);
        if (message !== null) {
            throw refusal(400, message);
        }
    } finally {
        body.close();
    }
}

function bodyOf(r) {
    try {
        return r.requestBuffer.length > 0 ? r.requestBuffer : null;
    } catch (error) {
        return null; // njs cannot make a buffer of no bytes
    }
}

function bodyInMemory(bytes) {
    if (bytes === null) {
        throw refusal(400, 'the body is empty; it must be an inference request');
    }
    return {
        length: bytes.length,
        head: length => bytes.subarray(0, length),
        lengthAt: offset => bytes.readUInt32LE(offset),
        close: () => undefined,
    };
}

// A large body. nginx has written it to a file, and only the few bytes that the guard needs are read.
function openFile(path) {
    const file = fs.openSync(path, 'r');
    const four = Buffer.alloc(4);
    function readFully(bytes, offset) {
        if (fs.readSync(file, bytes, 0, bytes.length, offset) !== bytes.length) {
            throw new Error('guard.js: ' + path + ': is shorter than it was');
        }
        return bytes;
    }
    return {
        length: fs.statSync(path).size,
        head: length => readFully(Buffer.alloc(length), 0),
        lengthAt: offset => readFully(four, offset).readUInt32LE(0),
        close: () => fs.closeSync(file),
    };
}

function refusal(status, message) {
    return { status: status, message: message };
}

// How a request breaks the protocol, or null. Binary tensors begin at `start` in `body`.
function findWrong(request, body, start) {
    if (!isObject(request)) {
        return 'the request must be an object';
    }
    if (request.id !== undefined && typeof request.id !== 'string') {
        return 'id: must be a string';
    }
    if (!Array.isArray(request.inputs) || request.inputs.length !== 1) {
        return 'inputs: must be a list of one input, TEXT';
    }
    const outputs = request.outputs === undefined ? [] : request.outputs;
    if (!Array.isArray(outputs) || outputs.length > MOST_OUTPUTS || !outputs.every(isNamed)) {
        return 'outputs: must be a list of at most ' + MOST_OUTPUTS + ' objects, each with the name of an output';
    }
    const all = [request, request.inputs[0]].concat(outputs);
    for (let i = 0; i < all.length; i++) {
        const wrong = isObject(all[i]) ? wrongParameters(all[i].parameters, i > 1 && all[i].name === 'SCORES') : null;
        if (wrong !== null) {
            return wrong;
        }
    }
    return wrongInput(request.inputs[0], body, start);
}

// `classification` of an output of strings ends Triton (a division by zero). Only SCORES may have it.
function wrongParameters(parameters, mayClassify) {
    if (parameters === undefined) {
        return null;
    }
    if (!isObject(parameters)) {
        return 'parameters: must be an object';
    }
    const names = Object.keys(parameters);
    for (let i = 0; i < names.length; i++) {
        const value = parameters[names[i]];
        if (names[i] === 'classification' && !mayClassify) {
            return 'parameters.classification: is allowed for the output SCORES only';
        }
        if (CLOSED_PARAMETER.test(names[i])) {
            return 'parameters.' + names[i] + ': is not allowed here';
        }
        if (TRUTH_VALUES.indexOf(names[i]) >= 0 && typeof value !== 'boolean') {
            return 'parameters.' + names[i] + ': must be true or false';
        }
        if (WHOLE_NUMBERS.indexOf(names[i]) >= 0 && !isLength(value)) {
            return 'parameters.' + names[i] + ': must be a whole number from 0 to ' + LARGEST_LENGTH
                + ', without a point and without e';
        }
        if (typeof value !== 'string' && typeof value !== 'boolean' && !isNumber(value)) {
            return 'parameters.' + names[i] + ': must be a string, a number or a truth value';
        }
    }
    return null;
}

function wrongInput(input, body, start) {
    if (!isNamed(input) || typeof input.datatype !== 'string') {
        return 'inputs[0]: must be an object with name and datatype';
    }
    if (input.datatype !== 'BYTES') {
        return 'inputs[0].datatype: must be BYTES';
    }
    if (!Array.isArray(input.shape) || input.shape.length !== 2 || !isLength(input.shape[0]) || input.shape[1] !== 1) {
        return 'inputs[0].shape: must be [n, 1], whole numbers without a point and without e';
    }
    const elements = input.shape[0];
    if (elements < 1 || elements > MOST_TEXTS) {
        return 'inputs[0].shape: must be of one text or more, at most ' + MOST_TEXTS;
    }
    const binary = body.length - start;
    const size = input.parameters === undefined ? undefined : input.parameters.binary_data_size;
    if (size !== undefined) {
        if (size !== binary || input.data !== undefined) {
            return 'inputs[0].parameters.binary_data_size: must be the number of bytes after the JSON, without data';
        }
        return wrongElements(body, start, elements);
    }
    if (binary > 0) {
        return 'Inference-Header-Content-Length: the bytes after the JSON belong to no input';
    }
    const data = Array.isArray(input.data) ? flatten(input.data, []) : null;
    if (data === null || data.length !== elements || !data.every(isString)) {
        return 'inputs[0].data: must be as many strings as the shape says';
    }
    return null;
}

// Each binary text follows its length. If a length is wrong, Triton's Python backend fails the whole batch, including other
// callers' requests, and never counts these requests as ended.
function wrongElements(body, start, elements) {
    let offset = start;
    for (let i = 0; i < elements; i++) {
        if (offset + 4 > body.length) {
            return 'inputs[0]: has fewer binary texts than its shape says';
        }
        offset += 4 + body.lengthAt(offset);
        if (offset > body.length) {
            return 'inputs[0]: binary text ' + i + ' is shorter than its length says';
        }
    }
    return offset === body.length ? null : 'inputs[0]: has more binary data than its shape says';
}

// Triton reads [["a"], ["b"]] as ["a", "b"].
function flatten(data, all) {
    for (let i = 0; i < data.length; i++) {
        if (Array.isArray(data[i])) {
            flatten(data[i], all);
        } else {
            all.push(data[i]);
        }
    }
    return all;
}

function isObject(value) {
    return typeof value === 'object' && value !== null && !Array.isArray(value) && value !== json.DECIMAL;
}

function isNamed(value) {
    return isObject(value) && typeof value.name === 'string';
}

function isString(value) {
    return typeof value === 'string';
}

function isNumber(value) {
    return value === json.DECIMAL || typeof value === 'number' && Math.abs(value) <= Number.MAX_SAFE_INTEGER;
}

function isLength(value) {
    return typeof value === 'number' && value >= 0 && value <= LARGEST_LENGTH;
}
