// Lets a request through to Triton only if Triton's HTTP front end can read it.
//
// Triton 2.51 answers 500 to JSON that it cannot read, as if the server had failed. Deeply nested JSON and wrong lengths
// crash it. This guard refuses such requests with a 4xx and the reason. It passes on valid requests of KServe's v2 protocol
// unchanged, byte for byte. The guard does not check the texts themselves: the model does.

const LARGEST_LENGTH = 2147483647;
const MOST_TEXTS = 65536;
const MOST_OUTPUTS = 16;
const CLOSED_PARAMETER = /^(shared_memory_|sequence_)/;
const TRUTH_VALUES = ['binary_data', 'binary_data_output'];
const WHOLE_NUMBERS = ['binary_data_size', 'classification', 'priority', 'timeout'];
// JavaScript reads 1.0 as 1, but for Triton it is not a whole number. In a string, each quote has a backslash before it.
const FRACTION = new RegExp('"shape"\\s*:\\s*\\[[^\\]]*[-.eE]|"(' + WHOLE_NUMBERS.join('|') + ')"\\s*:\\s*-?[0-9]*[.eE]');

// A whole string of valid JSON; with a colon after it, it is a name.
const STRING = /"[^"\\]*(?:\\.[^"\\]*)*"\s*:?/g;
// Triton cannot read numbers beyond 1.8e308. This limit is well below that, and no request needs such numbers.
const HUGE_NUMBER = /[0-9]{200}|[eE]\+?0*[1-9][0-9]{2}/;

export default { bodyOf, check, hasLoneSurrogate, hasTwice, isObject, refusal };

function check(r) {
    const wrong = problem(r);
    if (wrong === null) {
        r.internalRedirect('@triton');
        return;
    }
    r.headersOut['Content-Type'] = 'application/json';
    r.return(wrong.status, JSON.stringify({ error: wrong.message }) + '\n');
}

function problem(r) {
    const encoding = r.headersIn['Content-Encoding'];
    if (encoding !== undefined && encoding !== 'identity') {
        return refusal(415, 'Content-Encoding: bodies must not be compressed');
    }
    const body = bodyOf(r);
    if (body === null) {
        return refusal(400, 'the body is empty; it must be an inference request');
    }
    const said = r.headersIn['Inference-Header-Content-Length'];
    let length = body.length;
    if (said !== undefined) {
        if (!/^[0-9]{1,10}$/.test(said) || Number(said) > body.length) {
            return refusal(400, 'Inference-Header-Content-Length: must be a whole number, at most the body\'s length');
        }
        length = Number(said);
    }
    const text = body.toString('utf8', 0, length);
    let request;
    try {
        request = JSON.parse(text); // refuses more than 32 levels of nesting
    } catch (error) {
        return refusal(400, 'the body must be JSON: ' + error.message);
    }
    if (FRACTION.test(text)) {
        return refusal(400, 'shape, ' + WHOLE_NUMBERS.join(', ') + ': must be whole numbers, without a point and without e');
    }
    if (hasLoneSurrogate(text)) {
        return refusal(400, 'the body contains half of a surrogate pair, which is no character');
    }
    if (HUGE_NUMBER.test(text.replace(STRING, ''))) {
        return refusal(400, 'the body contains a number that is too large');
    }
    const message = findWrong(request, body, length);
    if (message !== null) {
        return refusal(400, message);
    }
    const names = namesOf(text);
    if (names.some(isEscaped)) {
        return refusal(400, 'names must be written without escapes');
    }
    return hasTwice(text, request) ? refusal(400, 'a name occurs twice in one object') : null;
}

function bodyOf(r) {
    try {
        return r.requestBuffer.length > 0 ? r.requestBuffer : null;
    } catch (error) {
        return null; // njs cannot make a buffer of no bytes
    }
}

function refusal(status, message) {
    return { status: status, message: message };
}

function hasLoneSurrogate(text) {
    if (!/\\u[dD][89a-fA-F]/.test(text)) {
        return false;
    }
    const escapes = text.replace(/\\\\/g, '').replace(/\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}/g, '');
    return /\\u[dD][89a-fA-F]/.test(escapes);
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

function isName(string) {
    return string.endsWith(':');
}

function isEscaped(name) {
    return name.indexOf('\\') >= 0;
}

function namesOf(text) {
    return (text.match(STRING) || []).filter(isName);
}

// Whether an object of this JSON has a name twice: JavaScript reads the last one, Triton the first.
function hasTwice(text, value) {
    return namesOf(text).length !== countNames(value);
}

function countNames(value) {
    if (typeof value !== 'object' || value === null) {
        return 0;
    }
    if (Array.isArray(value)) {
        return value.reduce((sum, each) => sum + countNames(each), 0);
    }
    const names = Object.keys(value);
    return names.reduce((sum, name) => sum + countNames(value[name]), names.length);
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
        const whole = typeof value === 'number' && Math.abs(value) <= Number.MAX_SAFE_INTEGER;
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
            return 'parameters.' + names[i] + ': must be a whole number from 0 to ' + LARGEST_LENGTH;
        }
        if (typeof value !== 'string' && typeof value !== 'boolean' && !whole) {
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
        return 'inputs[0].shape: must be [n, 1]';
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
        offset += 4 + body.readUInt32LE(offset);
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
    return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isNamed(value) {
    return isObject(value) && typeof value.name === 'string';
}

function isString(value) {
    return typeof value === 'string';
}

function isLength(value) {
    return typeof value === 'number' && value % 1 === 0 && value >= 0 && value <= LARGEST_LENGTH;
}
