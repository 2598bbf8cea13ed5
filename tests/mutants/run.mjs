// Weir with one fault made on purpose, under the checkers that watch a fleet: each must be found. A checker that finds nothing
// anywhere proves nothing.
//
//   node run.mjs [--only PART-OF-NAME] [--seeds 3] [--reads 60000] [--orders 1500] [--faults 25]
//   node run.mjs --check     only whether each still has its place
import { parseArgs } from 'node:util'
import { cpSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { spawnSync } from 'node:child_process'

const { values: options } = parseArgs({
  options: {
    only: { type: 'string', default: '' },
    check: { type: 'boolean', default: false },
    seeds: { type: 'string', default: '3' },
    reads: { type: 'string', default: '60000' },
    orders: { type: 'string', default: '1500' },
    faults: { type: 'string', default: '25' }
  }
})

/** Longest that one build and run takes. */
const PATIENCE_MS = 10 * 60 * 1000

/** What is wrong, in which file, and by which changes: what stands there, once, and what stands there instead. */
const MUTANTS = [
  ['epochs are not looked at', 'src/invalidation/mirror.rs', ['if epoch.hard > position.seq || pending', 'if (epoch.hard > position.seq && cfg!(any())) || pending']],
  ['a fill stands one position too high', 'src/invalidation/mirror.rs',
    ['Some(log) => Position { incarnation: log.incarnation, seq: log.applied },', 'Some(log) => Position { incarnation: log.incarnation, seq: log.applied + 1 },']],
  ['entries are trusted without proof', 'src/invalidation/trust.rs', ['let bound_ms = bound.as_millis() as u64;', 'let bound_ms = 3600 * bound.as_millis() as u64;']],
  ['a gap is passed over', 'src/invalidation/mirror.rs', ['let next = at.seq == log.applied + 1;', 'let next = true;']],
  ['who joins takes what was overtaken', 'src/cache.rs',
    ['same && !is_for_others && (!knows_more ||', 'same && !is_for_others && (!knows_more || true ||'],
    ['self.invalidation.verdict(begun.position, &ask.subject) != Verdict::Gone && is_trusted(begun)', 'is_trusted(begun) || true']],
  ['tags of answers are not looked at', 'src/invalidation/epochs.rs',
    ['for tag in subject.tags.iter().chain(subject.answer_tags) {', 'for tag in subject.tags {']],
  ['prefixes name nothing', 'src/invalidation/epochs.rs', ['if self.has_prefixes {', 'if self.has_prefixes && cfg!(any()) {']],
  ['another master counts on', 'src/kv/log.lua', ['if at[1] and at[3] == run_id then', 'if at[1] then']],
  ['what was trimmed was nothing', 'src/invalidation/mirror.rs',
    ['(log.applied, log.floor) = (seq, seq);\n        self.records.lost_up_to(seq);\n        self.raise(seq, &[Selector::All], false, None);', 'log.applied = seq;']],
  ['what was logged is not applied where it came in', 'src/invalidation.rs',
    ['let applied = mirror.record(at, selectors, *soft, order);', 'let applied = mirror.record(at, &[], *soft, order);']],
  ['who starts trusts what it has not read', 'src/invalidation/mirror.rs', ['floor: head.seq,', 'floor: 0,']],
  ['what cannot be logged is forgotten', 'src/invalidation.rs', ['mirror.pending(selectors, soft)', 'mirror.pending(&[], soft)']],
  ['what cannot be logged takes the next number', 'src/invalidation/mirror.rs',
    ['(epochs.of(subject).log, self.pending.verdict(subject))', '(epochs.of(subject).log, Verdict::Valid)'],
    ['.filter(|_| self.pending.is_empty())', '']],
  ['what a new master lost is not logged again', 'src/invalidation/mirror.rs', ['owed = known.records.owed(Position { incarnation, seq: applied }, common);', 'drop(known.records);']],
  ['an old copy is taken for the heir', 'src/invalidation/mirror.rs', ['owed = vec![Owed::everything(Position { incarnation, seq: applied })],', 'owed = Vec::new(),']],
  ['answers of before are judged as if nothing had come since', 'src/invalidation/mirror.rs',
    ['former.epochs.raise(selector, Stamp::of(u64::MAX, self.own.seq, soft));', 'former.epochs.raise(selector, Stamp::default());']]
]

/** Where few of the faults that befall a fleet show it: those, so that it need not wait for them. */
const FAILOVERS = 'FailedOver,FailedOverLate,FailedOverLossy,PodStopped,WayCut'
const SHOWN_BY = {
  'another master counts on': FAILOVERS,
  'what was trimmed was nothing': 'LogTrimmed,WayCut,WaySwallowed,AllCut,AllSwallowed,BusKicked',
  'who starts trusts what it has not read': 'PodKilled,LogTrimmed,RedisFlushed',
  'what a new master lost is not logged again': FAILOVERS,
  'an old copy is taken for the heir': FAILOVERS + ',RedisEmpty',
  'answers of before are judged as if nothing had come since': FAILOVERS
}

/** The same, of those that ask the service for more than they need: where nothing else is wrong, they are to be found. */
const LAVISH = [
  ['every pod fetches for itself', 'src/cache/shared.rs', ['if size(stored) > self.max_value || time_to_live == 0 {', 'if size(stored) < usize::MAX || time_to_live == 0 {']],
  ['a lease that is held is given once more', 'src/cache/lease.lua', ['if held[3] == ARGV[3] and tonumber(held[4]) >= tonumber(ARGV[6]) then', 'if false then']],
  ['whatever is invalidated ends every lease', 'src/cache/lease.lua', ['tonumber(held[4]) >= tonumber(ARGV[6])', 'tonumber(held[4]) >= tonumber(ARGV[4])']]
]

/** The same, of limits: each under the test that is to find it. */
const LIMITS = [
  ['one_identity', 'a loan does not count as taken', 'src/limit/bucket.lua', ['s.credit = s.credit - units\n', '']],
  ['what_one_limit', 'who is denied is charged', 'src/limit/take.lua', ['if admitted and limit.first.covered then', 'if limit.first.covered then']],
  ['while_redis', 'each pod has the whole limit while Redis is away', 'src/limit.rs', ['bound.shape.divided(self.replicas.load(Ordering::Relaxed))', 'bound.shape.divided(1)']]
]

/** The same, where a fleet shows it by luck only, under the test of the library that is to find it. */
const ALONE = [
  // A fleet has to lose what no pod remembers.
  ['invalidation::lineage', 'a new master counts what was beyond the common record as its own', 'src/invalidation/lineage.rs',
    ['seq: position.seq.min(common)', 'seq: position.seq.saturating_add(0 * common)']],
  // A Redis that stands still answers what was asked meanwhile in the end, which takes from its bucket too.
  ['limit::tests::what_was_admitted_while_redis_was_away_is_owed', 'nothing is owed for what was admitted meanwhile', 'src/limit/bucket.lua', ['s.credit = math.max(s.credit - units, math.min(s.credit, 0))', 's.credit = math.max(s.credit, math.min(s.credit, 0))']]
]

/** What is built. */
const PARTS = ['src', 'tests', 'benches', 'docs', 'deploy', 'config.example.toml', 'Cargo.toml', 'Cargo.lock', 'README.md', 'clippy.toml']

const root = resolve(import.meta.dirname, '../..')
const place = join(root, 'target/mutants')
const tree = join(place, 'tree')

/** A file with these changes, or as it is. */
function changed (file, changes = []) {
  let text = readFileSync(join(root, file), 'utf8')
  for (const [from, to] of changes) {
    if (text.split(from).length !== 2) throw new Error(`${file} has ${text.split(from).length - 1} times, and not once: ${from}`)
    text = text.replace(from, () => to)
  }
  return text
}

const write = (file, changes) => writeFileSync(join(tree, file), changed(file, changes))

/** What the checker said, if it found something; nothing if all seemed well. */
function found (test, name, seed) {
  const isAlone = ALONE.some(([own]) => own === test)
  const run = spawnSync('cargo', ['test', '--quiet', '--locked', ...(isAlone ? ['--lib'] : ['--test', 'it']), '--', test, '--nocapture'], {
    cwd: tree,
    encoding: 'utf8',
    timeout: PATIENCE_MS,
    env: { ...process.env, CARGO_TARGET_DIR: join(place, 'build'), WEIR_SEED: String(seed), WEIR_READS: options.reads, WEIR_ORDERS: options.orders, WEIR_FAULTS: options.faults, WEIR_ONLY: SHOWN_BY[name] ?? '' }
  })
  const said = run.stdout + run.stderr
  if (run.status === 0) return null
  const violation = /^(older than.*|fetched before.*|fetched needlessly.*|more than the limit.*|charged without.*|the answer is another.*)$/m.exec(said) ?? (isAlone && /^.* --- FAILED$/m.exec(said))
  if (!violation) throw new Error(`it failed in another way:\n${said.slice(-3000)}`)
  return violation[0]
}

const mutants = [
  ...MUTANTS.map(mutant => ['fleet::nothing', ...mutant]),
  ...LAVISH.map(mutant => ['fleet::without', ...mutant]),
  ...LIMITS.map(([test, ...mutant]) => [`limits_fleet::${test}`, ...mutant]),
  ...ALONE
]
for (const [, , file, ...changes] of mutants) changed(file, changes)
if (options.check) {
  console.log(`each of ${mutants.length} mutants has its place`)
  process.exit(0)
}
rmSync(tree, { recursive: true, force: true })
mkdirSync(tree, { recursive: true })
for (const part of PARTS) cpSync(join(root, part), join(tree, part), { recursive: true })
let missed = 0
for (const [test, name, file, ...changes] of mutants.filter(([, name]) => name.includes(options.only))) {
  write(file, changes)
  let says = null
  let seed = 0
  while (!says && seed < Number(options.seeds)) says = found(test, name, ++seed)
  if (!says) missed++
  console.log(`${says ? 'found ' : 'MISSED'} ${name}${says ? ` (seed ${seed}): ${says}` : ''}`)
  write(file)
}
console.log(missed ? `${missed} missed` : 'all were found')
process.exit(missed ? 1 : 0)
