-- GCRA on one bucket, in the same way as `decide` in buckets.rs.
--
-- KEYS[1] is the bucket: the time at which it is full again, in nanoseconds since 1970, as decimal
-- digits. ARGV[1] is the cost of this request in nanoseconds: 0 to only read the bucket, negative to
-- refund a request. ARGV[2] is the time in which an empty bucket fills, in nanoseconds. Returns the
-- time until the bucket was full, in nanoseconds, before this request. The caller derives its
-- decision from that, as this script does.
--
-- Lua's numbers are doubles, exact for whole numbers up to 2^53. A time in nanoseconds is larger,
-- so seconds and nanoseconds are handled separately. No difference exceeds the nanoseconds of a
-- minute.
local time = redis.call('TIME')
local second, nano = tonumber(time[1]), tonumber(time[2]) * 1000
local cost, whole = tonumber(ARGV[1]), tonumber(ARGV[2])

local kept = 0
local full_at = redis.call('GET', KEYS[1])
if full_at then
  local seconds = tonumber(string.sub(full_at, 1, -10)) - second
  kept = math.max(0, seconds * 1e9 + tonumber(string.sub(full_at, -9)) - nano)
end

-- A bucket beyond empty means that the clock was set back: wait one minute, not the whole step.
local before = math.min(kept, whole)
local after = before
if before + cost <= whole then
  after = math.max(0, before + cost)
end
if after ~= kept then
  local sum = nano + after
  local text = string.format('%d%09d', second + math.floor(sum / 1e9), sum % 1e9)
  -- The key may expire once the bucket is full, and no sooner.
  redis.call('SET', KEYS[1], text, 'PX', math.ceil(after / 1e6) + 1)
end
return before
