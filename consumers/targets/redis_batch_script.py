"""The Lua script that writes a batch, whole or in two halves.

APPLY is one batch on one server: checkpoints are compared, keys of a wrong type are looked for, and only then
is anything written, so that a batch that is refused or lost leaves nothing. An error after the first write is
what must not happen: keys are declared (the server checks the user's rights to them before it begins),
commands were tried when the session was opened (PROBE), values were checked before they were sent; and a
server that is out of memory or cannot save says so at a script's first write.

On a cluster the same is two: ROWS, one a slot, and then STATE, in the slot of the checkpoints.
"""

from __future__ import annotations

from consumers.targets.redis_lua import COMMON, JSON

# ARGV: see consumers.targets.redis_write, which is its other half, and redis_ops.
_ARGUMENTS = """
local REFUSED_LIMIT, UNPACKED = 100, 2000
local LENGTHS = {hash = 'HLEN', json = 'STRLEN'}
local sub, unpack_next = string.sub, cmsgpack.unpack_limit
local at = 0
local function take()
  at = at + 1
  return ARGV[at]
end
local function unpacked(text)
  if text == '' then return {} end
  return cmsgpack.unpack(text)
end
-- A command with many arguments, by as many as a call takes.
local function many(command, key, list)
  for start = 1, #list, UNPACKED do
    call(command, key, unpack(list, start, math.min(start + UNPACKED - 1, #list)))
  end
end
local now = now_us()

"""
_MOVES = """
local CHECKPOINTS = '_tailrace:checkpoints'
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

"""
_OPS = """
local groups, keys_before = {}, 0
for g = 1, tonumber(take()) do
  local group = {
    index = g - 1, before = keys_before, move = tonumber(ARGV[at + 1]), as = ARGV[at + 2],
    rows = ARGV[at + 3], gone = ARGV[at + 4], rereads = ARGV[at + 5], name = ARGV[at + 6],
    ttl_ms = tonumber(ARGV[at + 7]), insert_only = ARGV[at + 8] == 'insert_only',
    soft = ARGV[at + 9] ~= '', singly = ARGV[at + 10] ~= '',
    deletes = tonumber(ARGV[at + 11]), patches = tonumber(ARGV[at + 12]), ops = tonumber(ARGV[at + 13]),
    versions = ARGV[at + 16], values = ARGV[at + 20], texts = at + 21,
  }
  keys_before = keys_before + ARGV[at + 14]
  if not lost[group.move] then
    groups[#groups + 1] = group
    group.fields, group.numbers = unpacked(ARGV[at + 15]), unpacked(ARGV[at + 17])
    group.members, group.counts = unpacked(ARGV[at + 18]), unpacked(ARGV[at + 19])
    group.nulls = unpacked(ARGV[at + 21])
  end
  at = at + 21 + group.patches
  group.notes = at + 2
  group.notes_count = tonumber(ARGV[at + 1])
  at = at + 1 + 3 * group.notes_count
end
local state = at
"""
_ROWS = """
local function key_of(group, i) return KEYS[group.before + (group.numbers[i] or i)] end
local function version_of(group, i) return sub(group.versions, 20 * i - 19, 20 * i) end

-- Records are read and written many at once: a call costs as much as what it does.
local function read_records(group)
  local fields = group.fields
  if #fields == 0 or group.singly then return {} end
  if #fields <= UNPACKED then return call('HMGET', group.rows, unpack(fields)) end
  local records = {}
  for start = 1, #fields, UNPACKED do
    local found = call('HMGET', group.rows, unpack(fields, start, math.min(start + UNPACKED - 1, #fields)))
    for n, record in ipairs(found) do records[start + n - 1] = record end
  end
  return records
end

-- Nothing is written before every key was seen to be free, or of its type.
local refused = {}
local function look_at(group, i)
  local found = call('TYPE', key_of(group, i)).ok
  if found == 'none' or found == TYPES[group.as] then return end
  local record = call('HGET', group.rows, group.fields[i])
  if not (record and older(version_of(group, i), record)) and #refused < REFUSED_LIMIT then
    refused[#refused + 1] = {group.index, i - 1, found}
  end
end
local function look_at_members(group)
  local free = {}
  for i = group.deletes + 1, group.ops do
    local number = group.numbers[i]
    if free[number] == nil then
      local found = call('TYPE', key_of(group, i)).ok
      free[number] = found == 'none' or found == TYPES[group.as]
    end
    if not free[number] then look_at(group, i) end
  end
end
-- The keys of rows that are not there are asked for many at once; of the others a command that wants their
-- type is the cheapest question.
local function look_at_keys(group)
  local records, length, fresh = group.records, LENGTHS[group.as], {}
  for i = group.deletes + 1, group.ops do
    local record = records[i]
    if not record or #record > 20 then
      fresh[#fresh + 1] = i
    elseif type(redis.pcall(length, KEYS[group.before + i])) == 'table' then
      look_at(group, i)
    end
  end
  for start = 1, #fresh, UNPACKED do
    local keys, stop = {}, math.min(start + UNPACKED - 1, #fresh)
    for n = start, stop do keys[#keys + 1] = KEYS[group.before + fresh[n]] end
    if call('EXISTS', unpack(keys)) > 0 then
      for n = start, stop do look_at(group, fresh[n]) end
    end
  end
end
for _, group in ipairs(groups) do
  group.records = read_records(group)
  if LENGTHS[group.as] then look_at_keys(group) else look_at_members(group) end
end
if #refused > 0 then return {lost_list, {}, refused} end

local counts = {}
for _, group in ipairs(groups) do
  local as, rows, gone, rereads, ttl_ms = group.as, group.rows, group.gone, group.rereads, group.ttl_ms
  local records, singly, values, value_at = group.records, group.singly, group.values, 0
  local floor = call('HGET', FLOORS, group.name)
  local clears, expires = call('HLEN', rereads) > 0, call('ZCARD', gone) > 0
  local guarded, missed = 0, 0
  local members = as == 'zset' or as == 'set'
  known(group.name)

  local kept, passing, stays = {}, {}, {}
  local function settle()
    many('HSET', rows, kept)
    many('ZADD', gone, passing)
    many('ZREM', gone, stays)
    kept, passing, stays = {}, {}, {}
  end
  local function passes(field, at_us)
    passing[#passing + 1] = string.format('%.0f', at_us)
    passing[#passing + 1] = field
  end
  local function note(field, version, text)
    local noted = call('HGET', rereads, field)
    if not noted or not older(version, sub(noted, 1, 20)) then
      call('HSET', rereads, field, version .. text)
      clears = true
    end
    missed = missed + 1
  end
  local function clear(field, version)
    local noted = call('HGET', rereads, field)
    if noted and not older(version, sub(noted, 1, 20)) then call('HDEL', rereads, field) end
  end
  local function is_there(key, member)
    if as == 'zset' then return call('ZSCORE', key, member) end
    if as == 'set' then return call('SISMEMBER', key, member) == 1 end
    return call('EXISTS', key) == 1
  end
  local function keep(field, key, version)
    kept[#kept + 1] = field
    kept[#kept + 1] = version
    if ttl_ms > 0 then
      call('PEXPIRE', key, ttl_ms)
      passes(field, now + ttl_ms * 1000)
    elseif expires then
      stays[#stays + 1] = field
    end
  end
  local function bury(field, version)
    kept[#kept + 1] = field
    kept[#kept + 1] = version .. 'd'
    passes(field, now)
    expires = expires or singly
  end
  -- The op's strings, from where the last one's ended.
  local function pass_over(count)
    while count > 0 do
      value_at = (unpack_next(values, math.min(count, UNPACKED), value_at))
      count = count - UNPACKED
    end
  end
  local function next_value()
    local value
    value_at, value = unpack_next(values, 1, value_at)
    return value
  end
  local function next_values(count)
    local found = {}
    for n = 1, count do found[n] = next_value() end
    return found
  end
  local function set(key, after, ...)
    call('HSET', key, ...)
    return after
  end
  local function set_fields(key, count, nulls)
    while count > 0 do
      value_at = set(key, unpack_next(values, math.min(count, UNPACKED), value_at))
      count = count - UNPACKED
    end
    if nulls then many('HDEL', key, nulls) end
  end
  local function write(key, member, count, nulls)
    if as == 'hash' then set_fields(key, count, nulls)
    elseif as == 'json' then call('SET', key, next_value())
    elseif as == 'set' then call('SADD', key, member)
    elseif count > 0 then call('ZADD', key, next_value(), member)
    else call('ZREM', key, member) end
  end
  -- The values that an event has, over a row that is there; false when it is not.
  local function patch(key, member, count, nulls)
    if members then
      if count > 0 then call('ZADD', key, next_value(), member)
      elseif nulls then call('ZREM', key, member) end
      return true
    end
    if not is_there(key, member) then
      pass_over(count)
      return false
    end
    if as == 'hash' then
      set_fields(key, count, nulls)
      return true
    end
    local text = merged(call('GET', key), next_values(count))
    if text then call('SET', key, text) end
    return text ~= nil
  end

  local fields, numbers, group_members = group.fields, group.numbers, group.members
  local versions, strings, nulls, before = group.versions, group.counts, group.nulls, group.before
  for i = 1, group.ops do
    local field, key, member = fields[i], KEYS[before + (numbers[i] or i)], group_members[i]
    local version, count, record = sub(versions, 20 * i - 19, 20 * i), strings[i], records[i]
    if singly then record = call('HGET', rows, field) end
    local live, deletes = record and #record == 20, i <= group.deletes
    if floor and not older(floor, version) then
      guarded = guarded + 1
      pass_over(count)
    elseif record and older(version, record) then
      if live or not deletes then guarded = guarded + 1 end
      pass_over(count)
    elseif deletes then
      if not group.soft then
        remove(as, key, member)
        bury(field, version)
      elseif not live or call('TYPE', key).ok ~= TYPES[as] then
        pass_over(count)
        bury(field, version)
      elseif patch(key, member, count) then
        keep(field, key, version)
      else
        bury(field, version)
      end
      if clears then clear(field, version) end
    elseif i <= group.deletes + group.patches then
      if not live then
        pass_over(count)
        note(field, version, ARGV[group.texts + i - group.deletes])
      elseif not patch(key, member, count, nulls[i]) then
        note(field, version, ARGV[group.texts + i - group.deletes])
      elseif not group.insert_only then
        keep(field, key, version)
      end
    else
      if group.insert_only and is_there(key, member) then
        pass_over(count)
      else
        write(key, member, count, nulls[i])
        keep(field, key, version)
      end
      if clears then clear(field, version) end
    end
    if singly then settle() end
  end
  settle()
  for i = 0, group.notes_count - 1 do
    local field, version = ARGV[group.notes + 3 * i], ARGV[group.notes + 3 * i + 1]
    local record = call('HGET', rows, field)
    if not (record and older(version, record)) and not (floor and not older(floor, version)) then
      note(field, version, ARGV[group.notes + 3 * i + 2])
    end
  end
  counts[#counts + 1] = {group.index, guarded, missed}
end

"""
# What operators ask for of the keys that are un-parked must be what was read, or nothing is written.
_WISHES = """
local ASKED = '_tailrace:asked'
local unparks = at + 1
local changed = {}
for i = 1, tonumber(ARGV[unparks]) do
  local place = unparks + 3 * i
  local move, queue, wish = tonumber(ARGV[place - 2]), ARGV[place - 1], ARGV[place]
  if wish ~= '*' and not lost[move] then
    local asked = call('HGET', ASKED, queue)
    if (asked and cjson.decode(asked)[1] or '') ~= wish then changed[#changed + 1] = i - 1 end
  end
end
if #changed > 0 then return {lost_list, {}, {}, changed} end
"""
_STATE = """
local PARKED = '_tailrace:parked'
for _ = 1, tonumber(take()) do
  local move, queue, _ = tonumber(take()), take(), take()
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

# Where floors and names of tables are: beside the checkpoints, or, of a slot, in the slot.
_HERE = """
local FLOORS = '_tailrace:floors'
local function known(name) call('SADD', '_tailrace:tables', name) end
"""
_IN_SLOT = """
local FLOORS = ARGV[#ARGV]
local function known() end
"""
# Of the state's half: where marks are, names of tables, names of tables with tags whose slots hold notes.
_KNOWN = """
local counts, marked = {}, take()
local tables = {}
for _ = 1, tonumber(take()) do tables[#tables + 1] = take() end
local noted = {}
for _ = 1, tonumber(take()) do noted[#noted + 1] = take() end
"""
_KEEP_KNOWN = """
for i = 0, moves_count - 1 do
  if not lost[i + 1] and ARGV[moves + 5 * i + 1] ~= ARGV[moves + 5 * i + 2] then
    call('HSET', '_tailrace:marked', ARGV[moves + 5 * i], marked)
  end
end
for _, name in ipairs(tables) do call('SADD', '_tailrace:tables', name) end
for _, name in ipairs(noted) do call('SADD', '_tailrace:noted', name) end
"""

APPLY = COMMON + JSON + _HERE + _ARGUMENTS + _MOVES + _OPS + "at = state\n" + _WISHES + _ROWS + _STATE
ROWS = COMMON + JSON + _IN_SLOT + _ARGUMENTS + _MOVES + _OPS + _ROWS + "return {lost_list, counts, {}}\n"
STATE = COMMON + _ARGUMENTS + _MOVES + _KNOWN + _WISHES + _KEEP_KNOWN + _STATE
