; Stores the upper half of the head. Over exits the width is wrong; over polling the index is wrong.
%include "driver.inc"
    begin
    mov word [rdi + 0x12], 0x7FFF
    finish
