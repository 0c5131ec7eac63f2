"""The Lua scripts of a Redis target: each runs alone in the server, and all of it or nothing is kept.

APPLY is one batch: checkpoints are compared, keys of a wrong type are looked for, and only then is
anything written, so that a batch that is refused or lost leaves nothing. An error after the first write is
what must not happen: keys are declared (the server checks the user's rights to them before it begins),
commands were tried when the session was opened (PROBE), values were checked before they were sent; and a
server that is out of memory or cannot save says so at a script's first write.

Versions are 20 bytes, big-endian: epoch 4, commit LSN 8, ordinal 8; the record of a row that is gone has one
byte more. They are compared as numbers of 32 bits, which Lua's doubles hold.
"""

from __future__ import annotations

from hashlib import sha1

_COMMON = """
local call = redis.call
local function older(a, b)
  local a1, a2, a3, a4, a5 = struct.unpack('>I4I4I4I4I4', a)
  local b1, b2, b3, b4, b5 = struct.unpack('>I4I4I4I4I4', b)
  if a1 ~= b1 then return a1 < b1 end
  if a2 ~= b2 then return a2 < b2 end
  if a3 ~= b3 then return a3 < b3 end
  if a4 ~= b4 then return a4 < b4 end
  return a5 < b5
end
local function now_us()
  local time = call('TIME')
  return time[1] * 1000000 + time[2]
end
local TYPES = {hash = 'hash', json = 'string', zset = 'zset', set = 'set'}
-- The key and the member of a row, from the name of its record.
local function place_of(as, prefix, field)
  if as == 'hash' or as == 'json' then return prefix .. field, '' end
  local length, from = string.match(field, '^(%d+):()')
  return prefix .. string.sub(field, from, from + length - 1), string.sub(field, from + length)
end
local function remove(as, key, member)
  if call('TYPE', key).ok ~= TYPES[as] then return end
  if as == 'zset' then call('ZREM', key, member)
  elseif as == 'set' then call('SREM', key, member)
  else call('UNLINK', key) end
end
"""

# JSON text of ours, members in their order; numbers stay the digits they are.
_JSON = """
local function string_end(text, from)
  local at = from + 1
  while true do
    local found = string.find(text, '["\\\\]', at)
    if not found then return nil end
    if string.byte(text, found) == 34 then return found end
    at = found + 2
  end
end
local function value_end(text, from)
  local first = string.sub(text, from, from)
  if first == '"' then return string_end(text, from) end
  if first == '{' or first == '[' then
    local depth, at = 0, from
    while at do
      local found = string.find(text, '["%[%]{}]', at)
      if not found then return nil end
      local char = string.sub(text, found, found)
      if char == '"' then
        at = string_end(text, found)
        at = at and at + 1
      else
        depth = depth + ((char == '{' or char == '[') and 1 or -1)
        if depth == 0 then return found end
        at = found + 1
      end
    end
    return nil
  end
  local after = string.find(text, '[,}%]%s]', from)
  return after and after > from and after - 1 or nil
end
-- `base` with the members ARGV[from], ARGV[from + 1], ...; nil when it is no JSON object. `nulls`: only
-- members that are null there are replaced.
local function merged(base, from, to, nulls)
  local given, used, parts = {}, {}, {}
  for i = from, to, 2 do given[ARGV[i]] = ARGV[i + 1] end
  local at = string.match(base, '^%s*{%s*()')
  if not at then return nil end
  while string.byte(base, at) == 34 do
    local stop = string_end(base, at)
    if not stop then return nil end
    local name = string.sub(base, at, stop)
    at = string.match(base, '^%s*:%s*()', stop + 1)
    if not at then return nil end
    stop = value_end(base, at)
    if not stop then return nil end
    local value = string.sub(base, at, stop)
    if not nulls or value == 'null' then value = given[name] or value end
    parts[#parts + 1] = name .. ':' .. value
    used[name] = true
    at = string.match(base, '^%s*,%s*()', stop + 1)
    if not at then
      at = string.match(base, '^%s*()}', stop + 1)
      if not at then return nil end
    end
  end
  if not string.match(base, '^}%s*$', at) then return nil end
  for i = from, to, 2 do
    if not used[ARGV[i]] then parts[#parts + 1] = ARGV[i] .. ':' .. ARGV[i + 1] end
  end
  return '{' .. table.concat(parts, ',') .. '}'
end
"""

# ARGV: see consumers.targets.redis_write, which is its other half.
APPLY = (
    _COMMON
    + _JSON
    + """
local CHECKPOINTS, FLOORS, TABLES = '_tailrace:checkpoints', '_tailrace:floors', '_tailrace:tables'
local PARKED, ASKED, REFUSED_LIMIT, UNPACKED = '_tailrace:parked', '_tailrace:asked', 100, 2000
local at = 0
local function take()
  at = at + 1
  return ARGV[at]
end
local now = now_us()

local moves, lost, lost_list = at + 2, {}, {}
local moves_count = tonumber(take())
for i = 1, moves_count do
  local stand = call('HGET', CHECKPOINTS, ARGV[at + 1])
  if not stand or string.match(stand, '^%d+') ~= ARGV[at + 2] then
    lost[i] = true
    lost_list[#lost_list + 1] = i - 1
  end
  at = at + 5
end

local groups = {}
for g = 1, tonumber(take()) do
  local group = {
    move = tonumber(ARGV[at + 1]), as = ARGV[at + 2], rows = ARGV[at + 3], gone = ARGV[at + 4],
    rereads = ARGV[at + 5], name = ARGV[at + 6], ttl_ms = tonumber(ARGV[at + 7]),
    insert_only = ARGV[at + 8] == 'insert_only', ops = tonumber(ARGV[at + 9]), first = at + 10,
  }
  at = at + 9
  for _ = 1, group.ops do at = at + 6 + ARGV[at + 6] end
  group.notes = at + 2
  group.notes_count = tonumber(ARGV[at + 1])
  at = at + 1 + 3 * group.notes_count
  if not lost[group.move] then groups[#groups + 1] = group end
  group.index = g
end
local state = at

-- Nothing is written before every key was seen to be free, or of its type.
local refused = {}
for _, group in ipairs(groups) do
  local op, wanted, seen = group.first, TYPES[group.as], {}
  for i = 1, group.ops do
    local kind, key = ARGV[op], KEYS[tonumber(ARGV[op + 2])]
    if kind == 'w' or kind == 'p' then
      local found = seen[key]
      if not found then
        found = call('TYPE', key).ok
        if group.as == 'zset' or group.as == 'set' then seen[key] = found end
      end
      if found ~= 'none' and found ~= wanted then
        local record = call('HGET', group.rows, ARGV[op + 1])
        if not (record and older(ARGV[op + 4], record)) and #refused < REFUSED_LIMIT then
          refused[#refused + 1] = {group.index - 1, i - 1, found}
        end
      end
    end
    op = op + 6 + ARGV[op + 5]
  end
end
if #refused > 0 then return {lost_list, {}, refused} end

local counts = {}
for _, group in ipairs(groups) do
  local as, rows, gone, rereads, ttl_ms = group.as, group.rows, group.gone, group.rereads, group.ttl_ms
  local floor = call('HGET', FLOORS, group.name)
  local clears, expires = call('HLEN', rereads) > 0, call('ZCARD', gone) > 0
  local guarded, missed = 0, 0
  local members = as == 'zset' or as == 'set'
  call('SADD', TABLES, group.name)

  -- Records are read and written many at once: a call costs as much as what it does.
  local records, kept = {}, {}
  local op, fields = group.first, {}
  for i = 1, group.ops do
    fields[#fields + 1] = ARGV[op + 1]
    if #fields == UNPACKED or i == group.ops then
      local found = call('HMGET', rows, unpack(fields))
      for n, field in ipairs(fields) do records[field] = found[n] end
      fields = {}
    end
    op = op + 6 + ARGV[op + 5]
  end
  local function record_is(field, record)
    records[field] = record
    kept[#kept + 1] = field
    kept[#kept + 1] = record
  end
  local function note(field, version, text)
    local noted = call('HGET', rereads, field)
    if not noted or not older(version, string.sub(noted, 1, 20)) then
      call('HSET', rereads, field, version .. text)
      clears = true
    end
    missed = missed + 1
  end
  local function clear(field, version)
    if not clears then return end
    local noted = call('HGET', rereads, field)
    if noted and not older(version, string.sub(noted, 1, 20)) then call('HDEL', rereads, field) end
  end
  local function is_there(key, member)
    if as == 'zset' then return call('ZSCORE', key, member) end
    if as == 'set' then return call('SISMEMBER', key, member) == 1 end
    return call('EXISTS', key) == 1
  end
  local function keep(field, key, version)
    record_is(field, version)
    if ttl_ms > 0 then
      call('PEXPIRE', key, ttl_ms)
      call('ZADD', gone, string.format('%.0f', now + ttl_ms * 1000), field)
    elseif expires then
      call('ZREM', gone, field)
    end
  end
  local function bury(field, version)
    record_is(field, version .. 'd')
    call('ZADD', gone, string.format('%.0f', now), field)
    expires = true
  end
  local function set_fields(key, from, to)
    for start = from, to, UNPACKED do
      call('HSET', key, unpack(ARGV, start, math.min(start + UNPACKED - 1, to)))
    end
  end
  local function drop_fields(key, from, to)
    for start = from, to, UNPACKED do
      call('HDEL', key, unpack(ARGV, start, math.min(start + UNPACKED - 1, to)))
    end
  end
  -- Payload: how many are values (the others are names of fields without one), then both.
  local function write(key, member, from, to)
    local values = from + tonumber(ARGV[from])
    if as == 'json' then call('SET', key, ARGV[from + 1])
    elseif as == 'set' then call('SADD', key, member)
    elseif as == 'zset' then
      if values > from then call('ZADD', key, ARGV[values], member) else call('ZREM', key, member) end
    else
      set_fields(key, from + 1, values)
      drop_fields(key, values + 1, to)
    end
  end
  -- The values that an event has, over a row that is there; false when it is not.
  local function patch(key, member, from, to)
    local values = from + tonumber(ARGV[from])
    if members then
      if as == 'zset' and values > from then call('ZADD', key, ARGV[values], member)
      elseif as == 'zset' and to > values then call('ZREM', key, member) end
      return true
    end
    if not is_there(key, member) then return false end
    if as == 'json' then
      local text = merged(call('GET', key), from + 1, values)
      if not text then return false end
      call('SET', key, text)
    else
      set_fields(key, from + 1, values)
      drop_fields(key, values + 1, to)
    end
    return true
  end

  op = group.first
  for _ = 1, group.ops do
    local kind, field, key, member = ARGV[op], ARGV[op + 1], KEYS[tonumber(ARGV[op + 2])], ARGV[op + 3]
    local version, from, to = ARGV[op + 4], op + 6, op + 5 + ARGV[op + 5]
    local record = records[field]
    local live = record and #record == 20
    if floor and not older(floor, version) then
      guarded = guarded + 1
    elseif record and older(version, record) then
      if live or (kind ~= 'd' and kind ~= 's') then guarded = guarded + 1 end
    elseif kind == 'w' then
      if not (group.insert_only and is_there(key, member)) then
        write(key, member, from, to)
        keep(field, key, version)
      end
      clear(field, version)
    elseif kind == 'd' then
      remove(as, key, member)
      bury(field, version)
      clear(field, version)
    elseif kind == 's' then
      if live and call('TYPE', key).ok == TYPES[as] and patch(key, member, from, to) then
        keep(field, key, version)
      else
        bury(field, version)
      end
      clear(field, version)
    else
      local note_text = ARGV[to]
      if not live or not patch(key, member, from, to - 1) then note(field, version, note_text)
      elseif not group.insert_only then keep(field, key, version) end
    end
    op = to + 1
  end
  for start = 1, #kept, UNPACKED do
    call('HSET', rows, unpack(kept, start, math.min(start + UNPACKED - 1, #kept)))
  end
  for i = 0, group.notes_count - 1 do
    local field, version = ARGV[group.notes + 3 * i], ARGV[group.notes + 3 * i + 1]
    local record = call('HGET', rows, field)
    if not (record and older(version, record)) and not (floor and not older(floor, version)) then
      note(field, version, ARGV[group.notes + 3 * i + 2])
    end
  end
  counts[#counts + 1] = {group.index - 1, guarded, missed}
end

at = state
for _ = 1, tonumber(take()) do
  local move, queue = tonumber(take()), take()
  if not lost[move] then
    call('UNLINK', PARKED .. ':' .. queue)
    call('SREM', PARKED, queue)
    call('HDEL', ASKED, queue)
  end
end
for _ = 1, tonumber(take()) do
  local move, queue, asked, entry = tonumber(take()), take(), take(), take()
  if not lost[move] then
    call('RPUSH', PARKED .. ':' .. queue, entry)
    call('SADD', PARKED, queue)
    if asked ~= '' then call('HSET', ASKED, queue, asked) end
  end
end
for _ = 1, tonumber(take()) do
  local move, deleted, partition, count = tonumber(take()), take(), take(), take()
  if not lost[move] then
    local at_us = string.format('%.0f', now)
    call('ZADD', deleted, at_us, at_us .. ' ' .. partition .. ' ' .. count)
  end
end
for i = 0, moves_count - 1 do
  if not lost[i + 1] then
    local field, next_offset, last, cluster = ARGV[moves + 5 * i], ARGV[moves + 5 * i + 2],
      ARGV[moves + 5 * i + 3], ARGV[moves + 5 * i + 4]
    if last == '' then last = string.match(call('HGET', CHECKPOINTS, field), '^%d+ (%S+)') end
    call('HSET', CHECKPOINTS, field, next_offset .. ' ' .. last .. ' ' .. cluster)
  end
end
return {lost_list, counts, {}}
"""
)

# ARGV: checkpoint's field and where it must be, the table's name, the floor. -1: the partition is lost;
# 0: a higher floor is there; 1: rows at or below this one are to go.
RAISE_FLOOR = (
    _COMMON
    + """
local stand = call('HGET', '_tailrace:checkpoints', ARGV[1])
if not stand or string.match(stand, '^%d+') ~= ARGV[2] then return -1 end
local floor = call('HGET', '_tailrace:floors', ARGV[3])
if floor and older(ARGV[4], floor) then return 0 end
call('HSET', '_tailrace:floors', ARGV[3], ARGV[4])
return 1
"""
)

# ARGV: layout, prefix, rows, gone, rereads, floor, cursor, count, and under `delete: soft` the column and its
# time (as JSON where rows are). One step of a truncate; the next cursor.
TRUNCATE = (
    _COMMON
    + _JSON
    + """
local soft = #ARGV == 10
local function mark(key)
  if call('TYPE', key).ok ~= TYPES[ARGV[1]] then return end
  if ARGV[1] == 'hash' then
    call('HSETNX', key, ARGV[9], ARGV[10])
    return
  end
  local text = merged(call('GET', key), 9, 10, true)
  if text then
    local left_ms = call('PTTL', key)
    call('SET', key, text)
    if left_ms > 0 then call('PEXPIRE', key, left_ms) end
  end
end
local as, prefix, rows, gone, rereads, floor = unpack(ARGV, 1, 6)
local found = call('HSCAN', rows, ARGV[7], 'COUNT', ARGV[8])
local records = found[2]
for i = 1, #records, 2 do
  local field, record = records[i], records[i + 1]
  if not older(floor, record) then
    local key, member = place_of(as, prefix, field)
    if soft and #record == 20 then
      mark(key)
    else
      if #record == 20 then remove(as, key, member) end
      call('HDEL', rows, field)
      call('ZREM', gone, field)
    end
    local noted = call('HGET', rereads, field)
    if noted and not older(floor, string.sub(noted, 1, 20)) then call('HDEL', rereads, field) end
  end
end
return found[1]
"""
)

# ARGV: rereads, floor, cursor, count. What was noted of rows that were never there.
FORGET_REREADS = (
    _COMMON
    + """
local found = call('HSCAN', ARGV[1], ARGV[3], 'COUNT', ARGV[4])
for i = 1, #found[2], 2 do
  if not older(ARGV[2], string.sub(found[2][i + 1], 1, 20)) then call('HDEL', ARGV[1], found[2][i]) end
end
return found[1]
"""
)

# ARGV: layout, prefix, rows, gone, microseconds to keep, count. How many records were looked at.
PURGE = (
    _COMMON
    + """
local as, prefix, rows, gone = unpack(ARGV, 1, 4)
local before = string.format('%.0f', now_us() - tonumber(ARGV[5]))
local fields = call('ZRANGEBYSCORE', gone, '-inf', before, 'LIMIT', 0, ARGV[6])
for _, field in ipairs(fields) do
  local record = call('HGET', rows, field)
  local key = place_of(as, prefix, field)
  if record and (#record > 20 or call('EXISTS', key) == 0) then call('HDEL', rows, field) end
  call('ZREM', gone, field)
end
return #fields
"""
)

# ARGV: rows, gone.
COUNT = (
    _COMMON
    + """
return call('HLEN', ARGV[1]) - call('ZCOUNT', ARGV[2], '-inf', string.format('%.0f', now_us()))
"""
)


class Script:
    """Its text and the name by which the server keeps it."""

    __slots__ = ("sha", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = sha1(text.encode(), usedforsecurity=False).hexdigest()
