// Reads JSON strictly, in one pass over its bytes. What it takes means the same to every parser.
//
// A request holds nginx's event loop while it is read. So each byte costs constant time, and the number of values is bounded,
// because a value takes far more memory than its bytes. njs' own means have no such bounds: a global regular expression needs
// quadratic time, and JSON.parse makes 30 MB of 256 KB.

const MOST_LEVELS = 32;
const MOST_VALUES = 2500;
const MOST_CONTAINERS = 1000; // lists and objects
const MOST_DIGITS = 30;
const LARGEST_NUMBER = 1e300; // Triton cannot read numbers beyond 1.8e308
// In an outline, a number with a point or an exponent: JavaScript reads 1.0 as 1, but for Triton it is not a whole number.
const DECIMAL = { decimal: true };
const SHORT_ESCAPES = [0x6e, 0x72, 0x74, 0x2f, 0x62, 0x66]; // n r t / b f
const LONG_STRING = 100;
const LONG = '...';

export default { DECIMAL, outline, parse };

// The value of all of the JSON. Throws a refusal.
function parse(bytes) {
    return read(bytes, false);
}

// The same for a request to Triton: names must have no escapes. A string of more than 100 bytes becomes '...', a number like
// 1.0 becomes DECIMAL, and a number beyond 2^53 becomes Infinity.
function outline(bytes) {
    return read(bytes, true);
}

function read(bytes, asOutline) {
    let at = 0;
    let values = 0;
    let containers = 0;
    let hasEscape = false; // of the last string

    const all = readValue(0);
    skipSpace();
    return at === bytes.length ? all : fail('there is more after its end');

    function fail(message) {
        throw { status: 400, message: 'the body must be JSON: ' + message + ' (byte ' + at + ')' };
    }

    function skipSpace() {
        let c = bytes[at];
        while (c === 0x20 || c === 0x0a || c === 0x0d || c === 0x09) {
            c = bytes[++at];
        }
    }

    function readValue(level) {
        skipSpace();
        if (++values > MOST_VALUES) {
            fail('it has more than ' + MOST_VALUES + ' values');
        }
        const c = bytes[at];
        if (c === 0x22) {
            return readString(asOutline);
        }
        if (c === 0x7b || c === 0x5b) {
            if (++containers > MOST_CONTAINERS || level === MOST_LEVELS) {
                fail('it has more than ' + MOST_LEVELS + ' levels, or ' + MOST_CONTAINERS + ' lists and objects');
            }
            return c === 0x7b ? readObject(level + 1) : readList(level + 1);
        }
        if (c === 0x2d || c >= 0x30 && c <= 0x39) {
            return readNumber();
        }
        return c === 0x74 ? readWord('true', true) : c === 0x66 ? readWord('false', false) : readWord('null', null);
    }

    function readObject(level) {
        const found = Object.create(null); // a name may be __proto__
        at++;
        skipSpace();
        if (bytes[at] === 0x7d) {
            at++;
            return found;
        }
        for (;;) {
            skipSpace();
            if (bytes[at] !== 0x22) {
                fail('a name is missing');
            }
            const name = readString(false);
            if (hasEscape && asOutline) {
                fail('names must be written without escapes');
            }
            if (found[name] !== undefined) {
                fail(name.slice(0, LONG_STRING) + ': a name occurs twice in one object');
            }
            skipSpace();
            if (bytes[at++] !== 0x3a) {
                fail('a colon is missing');
            }
            found[name] = readValue(level);
            if (isLast(0x7d)) {
                return found;
            }
        }
    }

    function readList(level) {
        const found = [];
        at++;
        skipSpace();
        if (bytes[at] === 0x5d) {
            at++;
            return found;
        }
        for (;;) {
            found.push(readValue(level));
            if (isLast(0x5d)) {
                return found;
            }
        }
    }

    function isLast(end) {
        skipSpace();
        const c = bytes[at++];
        return c === end || c !== 0x2c && fail('a comma or an end is missing');
    }

    function readString(isShort) {
        const start = at;
        let i = at + 1;
        let c = bytes[i];
        hasEscape = false;
        while (c !== 0x22) {
            if (c > 0x5c) {
                i++;
            } else if (c === 0x5c) {
                hasEscape = true;
                c = bytes[i + 1];
                if (c === 0x5c || c === 0x22 || SHORT_ESCAPES.indexOf(c) >= 0) {
                    i += 2;
                } else if (c === 0x75) {
                    i += readUnicode(i);
                } else {
                    at = i;
                    fail('an escape is unknown');
                }
            } else if (c >= 0x20) {
                i++;
            } else {
                at = i;
                fail('a string has no end, or a control character without an escape');
            }
            c = bytes[i];
        }
        at = i + 1;
        if (i === start + 1) {
            return '';
        }
        if (isShort && i - start > LONG_STRING) {
            return LONG;
        }
        return hasEscape ? JSON.parse(bytes.toString('utf8', start, at)) : bytes.toString('utf8', start + 1, i);
    }

    // The length of the escape \uXXXX at i, or of the pair of them that makes one character.
    function readUnicode(i) {
        const first = readHex(i + 2);
        if (first < 0xd800 || first > 0xdfff) {
            return 6;
        }
        if (first < 0xdc00 && bytes[i + 6] === 0x5c && bytes[i + 7] === 0x75) {
            const second = readHex(i + 8);
            if (second >= 0xdc00 && second <= 0xdfff) {
                return 12;
            }
        }
        at = i;
        return fail('half of a surrogate pair is no character');
    }

    function readHex(i) {
        let code = 0;
        for (let end = i + 4; i < end; i++) {
            let c = bytes[i];
            if (c >= 0x30 && c <= 0x39) {
                c -= 0x30;
            } else if (c >= 0x41 && c <= 0x46) {
                c -= 0x37;
            } else if (c >= 0x61 && c <= 0x66) {
                c -= 0x57;
            } else {
                at = i;
                fail('\\u needs four hexadecimal digits');
            }
            code = code * 16 + c;
        }
        return code;
    }

    // Without strings and regular expressions, because njs frees memory only at the request's end.
    function readNumber() {
        const start = at;
        if (bytes[at] === 0x2d) {
            at++;
        }
        let number = 0;
        let exponent = 0;
        if (bytes[at] === 0x30) {
            at++;
        } else {
            number = readDigits(0);
        }
        const whole = at;
        if (bytes[at] === 0x2e) {
            at++;
            number = readDigits(number);
            exponent = whole + 1 - at;
        }
        if (bytes[at] === 0x65 || bytes[at] === 0x45) {
            const sign = bytes[++at];
            if (sign === 0x2b || sign === 0x2d) {
                at++;
            }
            const power = readDigits(0);
            exponent += sign === 0x2d ? -power : power;
        }
        if (at - start > MOST_DIGITS) {
            fail('a number is too large, or has more than ' + MOST_DIGITS + ' digits');
        }
        const value = (bytes[start] === 0x2d ? -number : number) * Math.pow(10, exponent);
        if (!(Math.abs(value) < LARGEST_NUMBER)) {
            fail('a number is too large');
        }
        if (at === whole && at - start < 16) {
            return value;
        }
        if (asOutline) {
            return at > whole && Math.abs(value) <= Number.MAX_SAFE_INTEGER ? DECIMAL : Infinity;
        }
        return Number(bytes.toString('utf8', start, at));
    }

    function readDigits(number) {
        const start = at;
        let c = bytes[at];
        while (c >= 0x30 && c <= 0x39) {
            number = number * 10 + c - 0x30;
            c = bytes[++at];
        }
        return at > start ? number : fail('a number is malformed');
    }

    function readWord(word, value) {
        for (let i = 0; i < word.length; i++) {
            if (bytes[at + i] !== word.charCodeAt(i)) {
                fail('a value is malformed');
            }
        }
        at += word.length;
        return value;
    }
}
