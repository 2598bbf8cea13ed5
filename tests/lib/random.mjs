/** A seeded generator (mulberry32), and draws from it. The same words give the same draws. */
export class Random {
  constructor (...words) {
    let state = 0x9e3779b9
    for (const word of words) {
      for (const char of String(word) + '|') state = Math.imul(state ^ char.charCodeAt(0), 0x01000193) >>> 0
    }
    this.state = state
  }

  /** From 0 to below 1. */
  next () {
    this.state = (this.state + 0x6d2b79f5) >>> 0
    let t = this.state
    t = Math.imul(t ^ (t >>> 15), t | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296
  }

  below (bound) {
    return Math.floor(this.next() * bound)
  }

  chance (share) {
    return this.next() < share
  }

  pick (list) {
    return list[this.below(list.length)]
  }

  /** From `[[weight, value], …]`. */
  weighted (list) {
    let left = this.next() * list.reduce((sum, [weight]) => sum + weight, 0)
    for (const [weight, value] of list) {
      left -= weight
      if (left < 0) return value
    }
    return list[list.length - 1][1]
  }
}
