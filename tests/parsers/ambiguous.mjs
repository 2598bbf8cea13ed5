// Bytes that are known to be read in two ways, or refused by some: a comparison that does not notice them is none. And what a
// Weir that does not do its work would send: each is made of a connection's bytes that were in order.
const next = 'GET /next HTTP/1.1\r\nhost: a\r\n\r\n'
const post = (lines, body) => `POST /x HTTP/1.1\r\nhost: a\r\n${lines}\r\n${body}`

/** Each must be read in two ways by the parsers, or be refused. */
export const AMBIGUOUS = {
  'a length and chunks': post('content-length: 6\r\ntransfer-encoding: chunked\r\n', `0\r\n\r\nX${next}`),
  'two lengths': post('content-length: 0\r\ncontent-length: 33\r\n', next),
  'a space before the colon': post('content-length : 31\r\n', next),
  'an unknown coding': post('transfer-encoding: xchunked\r\ncontent-length: 5\r\n', `hello${next}`),
  'a coding with a vertical tab': post('transfer-encoding: \x0bchunked\r\n', `0\r\n\r\n${next}`),
  'LF for line ends': `GET /x HTTP/1.1\nhost: a\n\n${next}`,
  'a folded field': `GET /x HTTP/1.1\r\nhost: a\r\nx: y\r\n z\r\n\r\n${next}`,
  'two Hosts': `GET /x HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n${next}`,
  'an empty Host': `GET /x HTTP/1.1\r\nhost: \r\n\r\n${next}`,
  'a chunk size with a space': post('transfer-encoding: chunked\r\n', `5 \r\nhello\r\n0\r\n\r\n${next}`),
  'a chunk extension with LF': post('transfer-encoding: chunked\r\n', `5;a\nhello\r\n0\r\n\r\n${next}`),
  'a control byte in the target': `GET /\x01 HTTP/1.1\r\nhost: a\r\n\r\n${next}`,
  'a method in lower case': `get /x HTTP/1.1\r\nhost: a\r\n\r\n${next}`,
  'HTTP/1.0 and chunks': `POST /x HTTP/1.0\r\nhost: a\r\nconnection: keep-alive\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n${next}`
}

const once = (from, to) => text => text.replace(from, to)

/** What a worse Weir would send instead; each must be reported wherever it changes something. */
export const MUTANTS = {
  'a length is off by one': once(/\r\ncontent-length: (\d+)/, (line, length) => `\r\ncontent-length: ${Number(length) + 1}`),
  'a length is sent twice': once(/\r\ncontent-length: (\d+)/, (line, length) => `${line}\r\ncontent-length: ${Number(length) + 2}`),
  'a length is sent beside chunks': once(/\r\ntransfer-encoding: chunked/, line => `${line}\r\ncontent-length: 3`),
  'the coding keeps its blanks': once(/\r\ntransfer-encoding: chunked/, '\r\ntransfer-encoding : chunked'),
  'a chunk size keeps its sign': once(/\r\n\r\n([0-9a-f]+)\r\n/, (text, size) => `\r\n\r\n+${size}\r\n`),
  'Host is sent twice': once(/\r\nhost: (\S+)/, (line) => `${line}\r\nhost: evil`),
  'Host is empty': once(/\r\nhost: \S+/, '\r\nhost: '),
  'a line ends with LF': once(/\r\nx-request-id: (\S+)\r\n/, (line, id) => `\r\nx-request-id: ${id}\n`),
  'a bare CR passes': once(/\r\nx-request-id: /, '\r\nx-request-id: \r'),
  'the target keeps a space': once(/^([A-Z]+) (\/[^ ]*) /, (line, method, target) => `${method} ${target} x `),
  'a folded field passes': once(/\r\nx-request-id: /, '\r\nx-request-id:\r\n ')
}
