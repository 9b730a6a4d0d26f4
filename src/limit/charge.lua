-- GCRA on one bucket, as `decide` in limiter.rs does it.
--
-- KEYS[1] is the bucket: the moment at which it is full again, in nanoseconds since 1970, as decimal
-- digits. ARGV[1] is the nanoseconds that this request costs, none where it only looks; ARGV[2] those
-- that an empty bucket takes to fill. Returns the nanoseconds until the bucket was full, before this
-- request; the caller makes its decision of that, as this script did.
--
-- Lua's numbers are doubles, which hold whole numbers up to 2^53. A moment in nanoseconds is larger, so
-- that seconds and the rest are kept apart; no difference is larger than a minute's nanoseconds.
local time = redis.call('TIME')
local second, nano = tonumber(time[1]), tonumber(time[2]) * 1000
local cost, whole = tonumber(ARGV[1]), tonumber(ARGV[2])

local kept = 0
local full_at = redis.call('GET', KEYS[1])
if full_at then
  local seconds = tonumber(string.sub(full_at, 1, -10)) - second
  kept = math.max(0, seconds * 1e9 + tonumber(string.sub(full_at, -9)) - nano)
end

-- More than empty is a clock that was set back: one minute's wait then, not all that it went back.
local before = math.min(kept, whole)
local after = before
if before + cost <= whole then
  after = before + cost
end
if after ~= kept then
  local sum = nano + after
  local text = string.format('%d%09d', second + math.floor(sum / 1e9), sum % 1e9)
  -- Once full it may be forgotten, and no sooner.
  redis.call('SET', KEYS[1], text, 'PX', math.ceil(after / 1e6) + 1)
end
return before
