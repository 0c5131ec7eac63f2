"""The Lua scripts for what a Redis target keeps beside the rows: identity, checkpoints, what waits, gates.

Small ones, outside of batches; those that write rows are in redis_scripts. Forms of the texts: redis_parked.
"""

from __future__ import annotations

from consumers.targets.redis_lua import COMMON

# ARGV: id, group, format, time, for a target that has none.
IDENTITY = """
local key = '_tailrace:identity'
if redis.call('EXISTS', key) == 0 then
  redis.call('HSET', key, 'id', ARGV[1], 'group', ARGV[2], 'format', ARGV[3], 'made', ARGV[4])
end
return redis.call('HMGET', key, 'id', 'group', 'format')
"""

# ARGV: fields.
CHECKPOINTS = """
local found = {}
for i, field in ipairs(ARGV) do
  redis.call('HSETNX', '_tailrace:checkpoints', field, '0 - -')
  found[i] = redis.call('HGET', '_tailrace:checkpoints', field)
end
return found
"""

# ARGV: who asks, then a field, the offset to go back to and the last record before it, each. The checkpoints
# as they were; nothing in the place of one that stays.
REWIND = """
local found = {}
for i = 2, #ARGV, 3 do
  local field, back = ARGV[i], tonumber(ARGV[i + 1])
  local was = redis.call('HGET', '_tailrace:checkpoints', field) or '0 - -'
  local at, cluster = string.match(was, '^(%d+) %S+ (.*)$')
  local noted = string.match(redis.call('HGET', '_tailrace:replays', field) or '0', '^%d+')
  if tonumber(at) > back then
    local until_offset = tonumber(noted) > tonumber(at) and noted or at
    redis.call('HSET', '_tailrace:checkpoints', field, ARGV[i + 1] .. ' ' .. ARGV[i + 2] .. ' ' .. cluster)
    redis.call('HSET', '_tailrace:replays', field, until_offset .. ' ' .. ARGV[1])
    found[#found + 1] = was
  else
    found[#found + 1] = ''
  end
end
return found
"""

# ARGV: queues. Each with what is asked and its entries; read without blocking by more than a few.
QUEUES = """
local found = {}
for i, queue in ipairs(ARGV) do
  found[i] = {redis.call('HGET', '_tailrace:asked', queue) or '',
    redis.call('LRANGE', '_tailrace:parked:' .. queue, 0, -1)}
end
return found
"""

# ARGV: what is asked, queues. How many are there.
ASK = """
local found = 0
for i = 2, #ARGV do
  if redis.call('SISMEMBER', '_tailrace:parked', ARGV[i]) == 1 then
    found = found + 1
    if ARGV[1] == '' then redis.call('HDEL', '_tailrace:asked', ARGV[i])
    else redis.call('HSET', '_tailrace:asked', ARGV[i], ARGV[1]) end
  end
end
return found
"""

# ARGV: field, state, since_us, the rest, and what Gate.stays needs: covered_since_us, whether it is decided.
# A gate's text: "state since_us rest", where the rest is "up_to_us decided_by ["kind", ..]".
HOLD = """
local known, since = redis.call('HGET', '_tailrace:gates', ARGV[1]), ARGV[3]
if known then
  if ARGV[6] == '1' then return 0 end
  local state, began, upto, kind = string.match(known, '^(%a+) (%d+) (%d+) %S+ %["(%a+)"')
  local last, held = string.match(ARGV[4], '^(%d+) %S+ %["(%a+)"')
  local decided = state == 'approved' or state == 'refused'
  if ARGV[2] == 'held' and decided and kind == held
    and tonumber(began) <= tonumber(ARGV[5]) and tonumber(last) <= tonumber(upto) then return 0 end
end
if known and ARGV[2] == 'held' and string.find(known, '^held ') then
  since = string.match(known, '^%a+ (%d+) ')
end
redis.call('HSET', '_tailrace:gates', ARGV[1], ARGV[2] .. ' ' .. since .. ' ' .. ARGV[4])
return 1
"""

# ARGV: the fields' beginning, state, up_to_us and who decided; the rest begins with up_to_us and that.
DECIDE = """
local found, gates = {}, redis.call('HGETALL', '_tailrace:gates')
for i = 1, #gates, 2 do
  local since, rest = string.match(gates[i + 1], '^held (%d+) %d+ %S+ (.*)$')
  if since and string.sub(gates[i], 1, #ARGV[1]) == ARGV[1] then
    local text = ARGV[2] .. ' ' .. since .. ' ' .. ARGV[3] .. ' ' .. ARGV[4] .. ' ' .. rest
    redis.call('HSET', '_tailrace:gates', gates[i], text)
    found[#found + 1] = gates[i]
    found[#found + 1] = text
  end
end
return found
"""

# Of a cluster. KEYS[1]: a master's marks. ARGV: field, expected offset, next offset, 1 when it is known to be
# there, each. Numbers of those that are lower than expected.
MARK = """
local lost = {}
for i = 1, #ARGV, 4 do
  local stand = tonumber(redis.call('HGET', KEYS[1], ARGV[i]) or -1)
  local expected, after = tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
  if ARGV[i + 3] == '' or stand == expected or (stand > expected and after > stand) then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 2])
  elseif stand < expected then
    lost[#lost + 1] = (i - 1) / 4
  end
end
return lost
"""

# ARGV: field, where the checkpoint must be, where it goes back to.
LOWER = """
local stand = redis.call('HGET', '_tailrace:checkpoints', ARGV[1])
if stand and string.match(stand, '^%d+') == ARGV[2] then
  redis.call('HSET', '_tailrace:checkpoints', ARGV[1], ARGV[3] .. string.match(stand, '^%d+(.*)$'))
  redis.call('HDEL', '_tailrace:marked', ARGV[1])
end
return 1
"""

# ARGV: what a truncate raises in a slot: the table, its floor. KEYS: those of the table in the slot. How many
# records and notes are there.
SLOT_FLOOR = (
    COMMON
    + """
local floor = call('HGET', KEYS[4], ARGV[1])
if not (floor and older(ARGV[2], floor)) then call('HSET', KEYS[4], ARGV[1], ARGV[2]) end
return call('HLEN', KEYS[1]) + call('HLEN', KEYS[3])
"""
)

# Every command that the others use, on a key of its own; the error names the first that is refused.
PROBE = """
local key = KEYS[1]
for _, words in ipairs({
  {'TIME'},
  {'TYPE', key},
  {'UNLINK', key},
  {'SET', key, '1'},
  {'GET', key},
  {'PEXPIRE', key, 1000},
  {'PTTL', key},
  {'EXISTS', key},
  {'STRLEN', key},
  {'UNLINK', key},
  {'HSET', key, 'a', '1'},
  {'HSETNX', key, 'a', '1'},
  {'HGET', key, 'a'},
  {'HMGET', key, 'a'},
  {'HGETALL', key},
  {'HKEYS', key},
  {'HLEN', key},
  {'HSCAN', key, '0'},
  {'HDEL', key, 'a'},
  {'ZADD', key, '1', 'a'},
  {'ZSCORE', key, 'a'},
  {'ZCARD', key},
  {'ZCOUNT', key, '-inf', '0'},
  {'ZRANGEBYSCORE', key, '-inf', '0'},
  {'ZREMRANGEBYSCORE', key, '-inf', '0'},
  {'ZREM', key, 'a'},
  {'SADD', key, 'a'},
  {'SMEMBERS', key},
  {'SISMEMBER', key, 'a'},
  {'SREM', key, 'a'},
  {'RPUSH', key, 'a'},
  {'LRANGE', key, 0, -1},
  {'UNLINK', key},
}) do
  local reply = redis.pcall(unpack(words))
  if type(reply) == 'table' and reply.err then
    return redis.error_reply(reply.err .. ' (' .. words[1] .. ')')
  end
end
return 1
"""
