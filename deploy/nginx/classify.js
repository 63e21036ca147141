// Plain JSON for people: POST /v1/classify and GET /v1/schema, described by openapi.json.
//
// Each becomes one inference request of KServe's v2 protocol, and its answer becomes plain JSON. Every error is
// {"error": "..."}. The model decodes the answers and renders fields: nothing here knows the heads.

import guard from 'guard.js';
import json from 'json.js';

const MOST_TEXTS = 64; // max_batch_size in config.pbtxt
const MOST_SECONDS = 2000; // Triton reads `timeout` as microseconds
const FIELDS = ['texts', 'top_k', 'threshold', 'reject_below', 'private', 'timeout_s', 'model', 'version'];
// In njs, $ also matches before a line end.
const MODEL = /^[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}$(?!\n)/;
const VERSION = /^[1-9][0-9]{0,17}$(?!\n)/;
// curl sends application/x-www-form-urlencoded unless it is told the type.
const JSON_TYPE = /^(application\/([a-z0-9.+-]+\+)?json|application\/x-www-form-urlencoded|text\/plain)\s*(;|$)/i;
const RETRY = /retry in ([0-9]+(\.[0-9]+)?) s$/;

export default { classify, measure, pass, schema };

function classify(r) {
    answer(r, () => {
        const question = readQuestion(r);
        const withFields = question.texts.some(guard.isObject);
        const outputs = withFields ? ['PREDICTION', 'SCHEMA'] : ['PREDICTION'];
        return infer(r, question, outputs).then(found => {
            if (withFields && !(JSON.parse(found.SCHEMA[0].toString()).fields || []).length) {
                throw guard.refusal(400, 'texts: this model declares no fields; send strings');
            }
            const start = Buffer.from('{"predictions": [');
            return Buffer.concat([start].concat(withCommas(found.PREDICTION), [Buffer.from(']}\n')]));
        });
    });
}

function schema(r) {
    answer(r, () => {
        const question = Object.assign({ texts: ['x'] }, readModel(r, {}));
        return infer(r, question, ['SCHEMA']).then(found => found.SCHEMA[0]);
    });
}

// Sends what `work` promises, or the refusal that it throws.
function answer(r, work) {
    Promise.resolve().then(work).then(body => send(r, 200, body)).catch(error => {
        if (error.status === undefined) {
            r.error('classify.js: ' + (error.stack || error));
            error = guard.refusal(500, 'the server failed to answer');
        }
        send(r, error.status, guard.errorBody(error));
    });
}

function send(r, status, body) {
    r.headersOut['Content-Type'] = 'application/json';
    r.return(status, body);
}

// What the caller asks for: texts, parameters for Triton, and the model's path.
function readQuestion(r) {
    const type = r.headersIn['Content-Type'];
    if (type !== undefined && !JSON_TYPE.test(type)) {
        throw guard.refusal(415, 'Content-Type: must be application/json');
    }
    const asked = readBody(r);
    const unknown = Object.keys(asked).filter(name => FIELDS.indexOf(name) < 0);
    if (unknown.length > 0) {
        throw guard.refusal(400, unknown[0] + ': is unknown; allowed are ' + FIELDS.join(', '));
    }
    if (!Array.isArray(asked.texts) || asked.texts.length < 1 || asked.texts.length > MOST_TEXTS) {
        throw guard.refusal(400, 'texts: must be a list of 1 to ' + MOST_TEXTS + ' texts; send more in several requests');
    }
    asked.texts.forEach(checkText);
    const parameters = {};
    if (asked.top_k !== undefined) {
        check(isNumber(asked.top_k, 1, 2147483647) && asked.top_k % 1 === 0, 'top_k: must be a whole number of 1 or more');
        parameters.top_k = asked.top_k;
    }
    if (asked.threshold !== undefined) {
        check(isNumber(asked.threshold, 0, 1), 'threshold: must be a number from 0 to 1');
        parameters.threshold = asked.threshold;
    }
    if (asked.reject_below !== undefined) {
        check(isNumber(asked.reject_below, 0, 1), 'reject_below: must be a number from 0 to 1; 0 rejects nothing');
        parameters.reject_below = asked.reject_below;
    }
    if (asked.private !== undefined) {
        check(typeof asked.private === 'boolean', 'private: must be true or false');
        if (asked.private) {
            parameters.private = true;
        }
    }
    if (asked.timeout_s !== undefined) {
        check(isNumber(asked.timeout_s, 1e-6, MOST_SECONDS), 'timeout_s: must be a number above 0, at most ' + MOST_SECONDS);
        parameters.timeout = Math.ceil(asked.timeout_s * 1e6);
    }
    return Object.assign({ texts: asked.texts, parameters: parameters }, readModel(r, asked));
}

function readBody(r) {
    const body = guard.bodyOf(r);
    check(body !== null, 'the body is empty; it must be JSON: {"texts": ["..."]}');
    check(Buffer.from(body.toString('utf8')).equals(body), 'the body must be UTF-8');
    const asked = json.parse(body);
    check(guard.isObject(asked), 'the body must be an object: {"texts": ["..."]}');
    return asked;
}

function checkText(text, i) {
    if (typeof text === 'string') {
        return;
    }
    check(guard.isObject(text), 'texts[' + i + ']: must be a string, or an object of the model\'s fields');
    check(Object.keys(text).every(name => isFlat(text[name])), 'texts[' + i + ']: a field must be a string or a number; '
        + 'a number beyond 2^53 must be a string');
}

// A larger number would become another one here, and the model would read another text than the caller sent.
function isFlat(value) {
    return value === null || typeof value !== 'object' && (typeof value !== 'number' || isExact(value));
}

function isExact(value) {
    return Math.abs(value) <= Number.MAX_SAFE_INTEGER;
}

// From the body, or from the query `?model=NAME&version=N`.
function readModel(r, asked) {
    const model = either('model', asked.model, r.args.model, r.variables.polyhead_model);
    const version = either('version', asked.version, r.args.version, '');
    Object.keys(r.args).forEach(name => check(name === 'model' || name === 'version', name + ': is an unknown parameter'));
    check(typeof model === 'string' && MODEL.test(model), 'model: must be a model\'s name: letters, digits and . _ -');
    check(typeof version === 'string' || typeof version === 'number' && isExact(version), 'version: must be a number');
    check(version === '' || VERSION.test(version), 'version: must be a whole number of 1 or more');
    return { path: '/' + model + (version === '' ? '' : '/versions/' + version) };
}

function either(name, inBody, inQuery, otherwise) {
    const twice = inBody !== undefined && inQuery !== undefined;
    check(!twice || typeof inBody !== 'object' && String(inBody) === inQuery, name + ': is given twice');
    return inBody !== undefined ? inBody : inQuery !== undefined ? inQuery : otherwise;
}

function check(right, message) {
    if (!right) {
        throw guard.refusal(400, message);
    }
}

function isNumber(value, least, most) {
    return typeof value === 'number' && value >= least && value <= most;
}

// The rows of each output, by name.
function infer(r, question, outputs) {
    const texts = question.texts.map(text => typeof text === 'string' ? text : JSON.stringify(text));
    const body = JSON.stringify({
        parameters: question.parameters || {},
        inputs: [{ name: 'TEXT', datatype: 'BYTES', shape: [texts.length, 1], data: texts }],
        outputs: outputs.map(name => ({ name: name, parameters: { binary_data: true } })),
    });
    return r.subrequest('/triton' + question.path, { method: 'POST', body: body }).then(reply => {
        if (r.variables.polyhead_too_large) {
            throw guard.refusal(400, 'the answer is too large; ask for fewer labels with top_k, or send fewer texts');
        }
        return reply.status === 200 ? readOutputs(reply) : refuse(r, reply);
    });
}

// Filters of the model's answer. nginx ends a request without a word if the answer to a subrequest is too large, so such an
// answer is dropped here.
function measure(reply) {
    if (Number(reply.headersOut['Content-Length']) > Number(reply.variables.polyhead_plain_answer)) {
        reply.variables.polyhead_too_large = '1';
        delete reply.headersOut['Content-Length'];
    }
}

function pass(reply, part, flags) {
    reply.sendBuffer(reply.variables.polyhead_too_large ? '' : part, flags);
}

// The rows of each output, as parts of the answer: an answer may be large, and is not copied. Its JSON is short, and then each
// row follows its length.
function readOutputs(reply) {
    const bytes = reply.responseBuffer;
    let at = Number(reply.headersOut['Inference-Header-Content-Length']);
    const found = {};
    JSON.parse(bytes.toString('utf8', 0, at)).outputs.forEach(output => {
        const end = at + output.parameters.binary_data_size;
        found[output.name] = [];
        while (at < end) {
            const length = bytes.readUInt32LE(at);
            found[output.name].push(bytes.subarray(at + 4, at + 4 + length));
            at += 4 + length;
        }
    });
    return found;
}

function withCommas(rows) {
    const comma = Buffer.from(', ');
    return rows.reduce((parts, row, i) => parts.concat(i > 0 ? [comma, row] : [row]), []);
}

// Throws what the caller hears of an answer that is no answer.
function refuse(r, reply) {
    const message = messageOf(reply);
    if (reply.status === 500) {
        // The supervisor knows whether the server is being restarted.
        return r.subrequest('/failure', { method: 'GET' }).then(probe => {
            if (probe.status === 503) {
                throw guard.refusal(503, 'no server can answer now; try again later');
            }
            throw guard.refusal(500, 'the server failed to answer');
        });
    }
    if (reply.status === 502) {
        throw guard.refusal(503, reply.variables.polyhead_unavailable);
    }
    if (reply.status === 504) {
        throw guard.refusal(504, 'the server took too long to answer');
    }
    if (/^Request for unknown model/.test(message)) {
        throw guard.refusal(404, 'model: there is no such model or version');
    }
    const wait = RETRY.exec(message);
    if (wait !== null) {
        r.variables.polyhead_wait = String(Math.max(1, Math.ceil(Number(wait[1]))));
    }
    throw guard.refusal(reply.status, message);
}

function messageOf(reply) {
    try {
        return String(JSON.parse(reply.responseText).error);
    } catch (error) {
        return 'the server refused the request';
    }
}
